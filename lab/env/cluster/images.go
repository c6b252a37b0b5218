package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

// Repository is the name of the product's image in the lab's registry, which is a mirror of all other registries.
const Repository = "ccgrkc/ccgrkc"

// serveRegistry starts an in-memory registry on loopback. It runs until stop.
func serveRegistry() (address string, stop func(), _ error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	go func() { _ = server.Serve(listener) }() // returns when the server is closed
	return listener.Addr().String(), func() { _ = server.Close() }, nil
}

// PushProduct pushes the image of make images with a tag.
func (c *Cluster) PushProduct(ctx context.Context, tag string) error {
	index, err := productIndex()
	if err != nil {
		return err
	}
	return c.push(ctx, index, Repository+":"+tag)
}

// PushOtherVersion builds an installer with a DLL of that version, and pushes the product's image with this installer.
func (c *Cluster) PushOtherVersion(ctx context.Context, version string) error {
	dir, err := os.MkdirTemp(c.Dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	installer, err := winnode.BuildInstaller(ctx, dir, version)
	if err != nil {
		return err
	}
	layer, err := fileLayer(installer, "Files/ccg-plugin-installer.exe")
	if err != nil {
		return err
	}
	index, err := productIndex()
	if err != nil {
		return err
	}
	manifests, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, m := range manifests.Manifests {
		if m.Platform == nil || m.Platform.OS != "windows" {
			continue
		}
		image, err := index.Image(m.Digest)
		if err != nil {
			return err
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			return err
		}
		index = mutate.AppendManifests(mutate.RemoveManifests(index, match.Digests(m.Digest)),
			mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: m.Platform}})
	}
	return c.push(ctx, index, Repository+":"+version)
}

func productIndex() (v1.ImageIndex, error) {
	outer, err := layout.ImageIndexFromPath(filepath.Join(winnode.Dist(), "image"))
	if err != nil {
		return nil, fmt.Errorf("the product's image: %w; build it with make images", err)
	}
	list, err := outer.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(list.Manifests) != 1 {
		return nil, fmt.Errorf("dist/image contains %d images, want 1; build it with make images", len(list.Manifests))
	}
	return outer.ImageIndex(list.Manifests[0].Digest)
}

func (c *Cluster) push(ctx context.Context, index v1.ImageIndex, reference string) error {
	ref, err := name.NewTag(c.Registry + "/" + reference)
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, index, remote.WithContext(ctx))
}

// AppImage is the image of an application that runs until it is stopped.
func (c *Cluster) AppImage() string { return c.Registry + "/" + appReference }

const appReference = "lab/app:1"

// pushApp pushes the image of the application.
func (c *Cluster) pushApp(ctx context.Context) error {
	layer, err := fileLayer(filepath.Join(winnode.Dist(), "lab", "app.exe"), "Files/app.exe")
	if err != nil {
		return fmt.Errorf("%w; build it with make build", err)
	}
	return c.pushWindows(ctx, appReference, v1.Config{Entrypoint: []string{"app.exe"}}, layer)
}

// PushEmptyImage pushes an image without files in place of one that the lab lacks, such as a Windows base image. The
// programs of Windows are on the node.
func (c *Cluster) PushEmptyImage(ctx context.Context, reference string) error {
	return c.pushWindows(ctx, reference, v1.Config{})
}

func (c *Cluster) pushWindows(ctx context.Context, reference string, config v1.Config, layers ...v1.Layer) error {
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return err
	}
	platform := v1.Platform{OS: "windows", Architecture: "amd64"}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS:           platform.OS,
		Architecture: platform.Architecture,
		RootFS:       file.RootFS,
		Config:       config,
	})
	if err != nil {
		return err
	}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add:        image,
		Descriptor: v1.Descriptor{Platform: &platform},
	})
	return c.push(ctx, index, reference)
}

// fileLayer is a layer with one program.
func fileLayer(path, as string) (v1.Layer, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: as, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	})
}
