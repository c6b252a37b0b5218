package main

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func push(ctx context.Context, dir, to string, insecure bool, log io.Writer) error {
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	tag, err := name.NewTag(to, append(opts, name.StrictValidation)...)
	if err != nil {
		return fmt.Errorf("--to %q: must be HOST[:PORT]/PATH:TAG: %w", to, err)
	}
	index, digest, err := open(dir)
	if err != nil {
		return err
	}
	// A registry checks the digests too, but its error does not contain the remedy.
	if err := validate.Index(index); err != nil {
		return fmt.Errorf("layout %s is damaged, build it again: %w", dir, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("layout %s: %w", dir, err)
	}
	fmt.Fprintf(log, "pushing version %s to %s\n", m.Annotations["org.opencontainers.image.version"], tag)
	if err := remote.WriteIndex(tag, index, remote.WithContext(ctx),
		remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("push to %s: %w", tag, err)
	}
	fmt.Fprintf(log, "pushed  %s@%s\n", tag, digest)
	return nil
}

// open returns the image index of a layout, and its digest.
func open(dir string) (v1.ImageIndex, v1.Hash, error) {
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, v1.Hash{}, fmt.Errorf("layout %s cannot be read, create it with images build: %w", dir, err)
	}
	m, err := outer.IndexManifest()
	if err != nil {
		return nil, v1.Hash{}, fmt.Errorf("layout %s: %w", dir, err)
	}
	if len(m.Manifests) != 1 {
		return nil, v1.Hash{}, fmt.Errorf("layout %s has %d images, expected one: images build did not write it",
			dir, len(m.Manifests))
	}
	digest := m.Manifests[0].Digest
	index, err := outer.ImageIndex(digest)
	if err != nil {
		return nil, v1.Hash{}, fmt.Errorf("layout %s: image %s: %w", dir, digest, err)
	}
	return index, digest, nil
}
