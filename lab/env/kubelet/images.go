package kubelet

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
)

// image is an unpacked image.
type image struct {
	id     string // registry/repository@sha256:...
	digest string // hex
	dir    string
	config v1.Config
}

// images are the images of one node: unpacked once for each digest.
type images struct {
	dir, os string
	mirror  string // see Options

	mu   sync.Mutex
	refs map[string]*image
}

var errNeverPull = errors.New("ErrImageNeverPull")

// get returns the image of a reference, and whether it had to be pulled. It pulls only from registries on loopback.
func (s *images) get(ctx context.Context, ref string, policy corev1.PullPolicy) (_ *image, pulled bool, _ error) {
	// One pull at a time, a kubelet's default.
	s.mu.Lock()
	defer s.mu.Unlock()
	if img := s.refs[ref]; img != nil && policy != corev1.PullAlways {
		return img, false, nil
	}
	if policy == corev1.PullNever {
		const format = "%w: Container image %q is not present with pull policy of Never"
		return nil, false, fmt.Errorf(format, errNeverPull, ref)
	}
	img, err := s.pull(ctx, ref)
	if err != nil {
		return nil, false, fmt.Errorf("failed to pull and unpack image %q: %w", ref, err)
	}
	s.refs[ref] = img
	return img, true, nil
}

func (s *images) pull(ctx context.Context, ref string) (*image, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	from := parsed
	host, _, err := net.SplitHostPort(parsed.Context().RegistryStr())
	if err != nil || !net.ParseIP(host).IsLoopback() && host != "localhost" {
		if s.mirror == "" {
			return nil, fmt.Errorf("the lab's nodes pull only from registries on loopback, such as 127.0.0.1:5000, "+
				"not from %s", parsed.Context().RegistryStr())
		}
		separator := ":"
		if _, isDigest := parsed.(name.Digest); isDigest {
			separator = "@"
		}
		mirrored := s.mirror + "/" + parsed.Context().RepositoryStr() + separator + parsed.Identifier()
		if from, err = name.ParseReference(mirrored); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	img, err := remote.Image(from, remote.WithContext(ctx), remote.WithAuth(authn.Anonymous),
		remote.WithPlatform(v1.Platform{OS: s.os, Architecture: "amd64"}))
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if config.OS != s.os {
		return nil, fmt.Errorf("no match for platform in manifest: the image is for %s, the node runs %s",
			config.OS, s.os)
	}
	unpacked := &image{
		id:     parsed.Context().Digest(digest.String()).String(),
		digest: digest.Hex,
		dir:    filepath.Join(s.dir, digest.Hex),
		config: config.Config,
	}
	if _, err := os.Stat(unpacked.dir); err == nil {
		return unpacked, nil
	}
	partial := unpacked.dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return nil, err
	}
	layers := mutate.Extract(img)
	defer layers.Close()
	if err := unpack(layers, partial, s.os == "windows"); err != nil {
		return nil, err
	}
	return unpacked, os.Rename(partial, unpacked.dir)
}

// unpack writes a flattened image to dir. In a Windows image the file system is below Files. Hives contains registry
// changes, which a HostProcess container does not use.
func unpack(r io.Reader, dir string, windows bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if windows {
			below, ok := strings.CutPrefix(name, "Files/")
			if !ok {
				continue
			}
			name = below
		}
		if name == "" {
			continue
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch header.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = writeFrom(root, name, archive, header.FileInfo().Mode().Perm(), windows)
		case tar.TypeSymlink:
			err = root.Symlink(header.Linkname, name)
		case tar.TypeLink:
			err = root.Link(strings.TrimPrefix(path.Clean("/"+header.Linkname), "/"), name)
		}
		if err != nil {
			return err
		}
	}
}

func writeFrom(root *os.Root, name string, content io.Reader, mode fs.FileMode, windows bool) error {
	if windows {
		mode = 0o755 // Windows images have no modes
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// copyTo copies the image to dir, which must not exist. The container can write to the copy.
func (i *image) copyTo(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", i.dir, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copying the image: %w\n%s", err, out)
	}
	return nil
}
