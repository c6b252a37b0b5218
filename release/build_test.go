package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestEqualProgramsGiveAnEqualDigest(t *testing.T) {
	t.Parallel()
	a, b := dist(t), dist(t)
	old := time.Now().Add(-time.Hour * 24 * 400)
	if err := os.Chtimes(filepath.Join(b, "ccg-plugin-installer.exe"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(b, "linux-arm64/uninstall-hook"), 0o700); err != nil {
		t.Fatal(err)
	}
	outA, digestA := built(t, a, scratch)
	outB, digestB := built(t, b, scratch)
	if digestA != digestB {
		t.Errorf("digests differ: %s and %s", digestA, digestB)
	}
	var files []string
	err := filepath.WalkDir(outA, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(outA, path)
			files = append(files, rel)
			if !bytes.Equal(read(t, outA, rel), read(t, outB, rel)) {
				t.Errorf("%s differs", rel)
			}
		}
		return err
	})
	if err != nil || len(files) < 9 {
		t.Errorf("layout has the files %v, error %v", files, err)
	}

	put(t, b, "gmsa-account-provider.exe", append(read(t, b, "gmsa-account-provider.exe"), 0))
	if _, digest := built(t, b, scratch); digest == digestA {
		t.Error("another program gives the same digest")
	}
}

// entry is what a test looks at in a layer.
type entry struct {
	header *tar.Header
	data   []byte
}

func entries(t *testing.T, l v1.Layer) []entry {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var all []entry
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{h, data})
	}
}

func names(all []entry) []string {
	var n []string
	for _, e := range all {
		n = append(n, e.header.Name)
	}
	return n
}

// loopback starts a registry and returns its host and port.
func loopback(t *testing.T) string {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestEveryPlatformCanBePulledUnchanged(t *testing.T) {
	t.Parallel()
	dir := dist(t)
	out, digest := built(t, dir, scratch)
	to := loopback(t) + "/ccgrkc/ccgrkc:v1.2.3"
	if err := push(context.Background(), out, to, false, io.Discard); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(to)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := index.Digest(); got != digest {
		t.Errorf("the registry has %s, built was %s", got, digest)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	wantLabels := map[string]string{
		"org.opencontainers.image.title": "CCGRKC",
		"org.opencontainers.image.description": "Kubernetes as the secret store for Windows gMSAs: the CCG plugin, " +
			"its installer and the Account Provider",
		"org.opencontainers.image.source":        "https://github.com/ccgrkc/ccgrkc",
		"org.opencontainers.image.documentation": "https://github.com/ccgrkc/ccgrkc#readme",
		"org.opencontainers.image.licenses":      "Apache-2.0",
		"org.opencontainers.image.version":       "v1.2.3",
		"org.opencontainers.image.revision":      "0123456789abcdef",
	}
	if diff := cmp.Diff(wantLabels, m.Annotations); diff != "" {
		t.Errorf("annotations of the index: -want +got\n%s", diff)
	}
	var platforms []v1.Platform
	for _, d := range m.Manifests {
		platforms = append(platforms, *d.Platform)
	}
	// No os.version: an entry with one is for one Windows Server only.
	wantPlatforms := []v1.Platform{
		{OS: "windows", Architecture: "amd64"}, {OS: "linux", Architecture: "amd64"},
		{OS: "linux", Architecture: "arm64"},
	}
	if diff := cmp.Diff(wantPlatforms, platforms); diff != "" {
		t.Errorf("platforms: -want +got\n%s", diff)
	}

	type image struct {
		platform v1.Platform
		config   v1.Config
		layers   [][]string
		contents map[string]string // files in the last layer, and what they must equal
	}
	sbom := filepath.Join(filepath.Dir(out), "sbom")
	linux := func(arch string) image {
		return image{
			platform: v1.Platform{OS: "linux", Architecture: arch},
			config: v1.Config{User: "65532:65532", Entrypoint: []string{"/uninstall-hook"}, WorkingDir: "/",
				Labels: wantLabels},
			layers: [][]string{
				{"sbom/", "sbom/uninstall-hook.cdx.json", "uninstall-hook"},
				{"gmsa-webhook", "sbom/", "sbom/gmsa-webhook.cdx.json"},
				{"gmsactl", "sbom/", "sbom/gmsactl.cdx.json"},
			},
			contents: map[string]string{
				"gmsactl":               filepath.Join(dir, "linux-"+arch, "gmsactl"),
				"sbom/gmsactl.cdx.json": filepath.Join(sbom, "gmsactl-linux-"+arch+".cdx.json"),
			},
		}
	}
	for _, c := range []image{
		{
			platform: windowsAMD64,
			config:   v1.Config{Env: []string{`PATH=C:\Windows\system32;C:\Windows`}, Labels: wantLabels},
			layers: [][]string{{
				"Files/", "Files/Windows/", "Files/Windows/System32/", "Files/Windows/System32/config/",
				"Files/Windows/System32/config/DEFAULT", "Files/Windows/System32/config/SAM",
				"Files/Windows/System32/config/SECURITY",
				"Files/Windows/System32/config/SOFTWARE", "Files/Windows/System32/config/SYSTEM",
			}, {
				"Files/", "Files/ccg-plugin-installer.exe", "Files/container-probe.exe",
				"Files/gmsa-account-provider.exe", "Files/sbom/", "Files/sbom/ccg-plugin-installer.cdx.json",
				"Files/sbom/container-probe.cdx.json", "Files/sbom/gmsa-account-provider.cdx.json", "Hives/",
			}},
			contents: map[string]string{
				"Files/ccg-plugin-installer.exe":            filepath.Join(dir, "ccg-plugin-installer.exe"),
				"Files/gmsa-account-provider.exe":           filepath.Join(dir, "gmsa-account-provider.exe"),
				"Files/container-probe.exe":                 filepath.Join(dir, "container-probe.exe"),
				"Files/sbom/ccg-plugin-installer.cdx.json":  filepath.Join(sbom, "ccg-plugin-installer.cdx.json"),
				"Files/sbom/gmsa-account-provider.cdx.json": filepath.Join(sbom, "gmsa-account-provider.cdx.json"),
			},
		},
		linux("amd64"),
		linux("arm64"),
	} {
		t.Run(c.platform.String(), func(t *testing.T) {
			image, err := remote.Image(ref, remote.WithPlatform(c.platform))
			if err != nil {
				t.Fatal(err)
			}
			config, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.config, config.Config); diff != "" {
				t.Errorf("config: -want +got\n%s", diff)
			}
			if config.OS != c.platform.OS || config.Architecture != c.platform.Architecture || config.OSVersion != "" ||
				!config.Created.Equal(epoch) {
				t.Errorf("config: os %q, architecture %q, os.version %q, created %s", config.OS, config.Architecture,
					config.OSVersion, config.Created)
			}
			layers, err := image.Layers()
			if err != nil {
				t.Fatal(err)
			}
			var got [][]string
			for _, l := range layers {
				if mt, _ := l.MediaType(); mt != types.OCILayer {
					t.Errorf("media type of a layer: %s", mt)
				}
				got = append(got, names(entries(t, l)))
			}
			if diff := cmp.Diff(c.layers, got); diff != "" {
				t.Fatalf("layers: -want +got\n%s", diff)
			}
			for _, e := range entries(t, layers[len(layers)-1]) {
				from, ok := c.contents[e.header.Name]
				if !ok {
					continue
				}
				if want := read(t, "", from); !bytes.Equal(want, e.data) {
					t.Errorf("%s is not %s", e.header.Name, from)
				}
				delete(c.contents, e.header.Name)
			}
			if len(c.contents) != 0 {
				t.Errorf("not in the image: %v", c.contents)
			}
		})
	}
}

func TestBaseIsPulled(t *testing.T) {
	t.Parallel()
	dir := dist(t)
	host := loopback(t)
	layer, err := windowsLayer([]file{{"License.txt", []byte("CC0")}})
	if err != nil {
		t.Fatal(err)
	}
	pushed := func(at string, platform v1.Platform) string {
		t.Helper()
		i, err := image(platform, v1.Config{Env: []string{"A=B"}}, layer)
		if err != nil {
			t.Fatal(err)
		}
		// As the public base is: behind an index that names a version of Windows.
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: i, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: platform.OS, Architecture: platform.Architecture, OSVersion: "10.0.20348.1"},
		}})
		ref, err := name.ParseReference(host + at)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref, index); err != nil {
			t.Fatal(err)
		}
		return ref.Name()
	}
	base := pushed("/base:v1.0.0", windowsAMD64)
	out, _ := built(t, dir, base)
	index, _, err := open(out)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	windows, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := windows.Layers()
	if err != nil || len(layers) != 2 {
		t.Fatalf("%d layers (%v), want the base's and ours", len(layers), err)
	}
	if got, _ := layers[0].DiffID(); got != must(layer.DiffID()) {
		t.Errorf("the first layer is %s, not the base's", got)
	}
	config, err := windows.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Config.Labels["org.opencontainers.image.base.name"]; got != base {
		t.Errorf("label of the base is %q, want %q", got, base)
	}
	if config.OSVersion != "" || m.Manifests[0].Platform.OSVersion != "" || slices.Contains(config.Config.Env, "A=B") {
		t.Errorf("config %+v took more than the layers of the base", config)
	}

	for _, c := range []struct{ base, want string }{
		{host + "/absent:v1", "base image " + host + "/absent:v1 cannot be pulled"},
		{host + "/absent:v1", "--base scratch"},
		{"127.0.0.1:1/base:v1", "base image 127.0.0.1:1/base:v1 cannot be pulled"},
		{"Not A Reference", `--base "Not A Reference"`},
		{pushed("/linux:v1", v1.Platform{OS: "linux", Architecture: "amd64"}),
			"base image " + host + "/linux:v1 cannot be pulled"},
	} {
		_, err := build(context.Background(),
			options{version: "v1", dist: dir, out: filepath.Join(t.TempDir(), "image"), base: c.base, log: io.Discard})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("base %s: %v, want %q", c.base, err, c.want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestBuildRejectsInvalidInput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir, out string)
		want  string
	}{
		{"a missing program", func(t *testing.T, dir, _ string) {
			os.Remove(filepath.Join(dir, "linux-arm64/uninstall-hook"))
		}, "linux-arm64/uninstall-hook does not exist: build it first"},
		{"a program for another platform", func(t *testing.T, dir, _ string) {
			put(t, dir, "linux-arm64/uninstall-hook", read(t, dir, "linux-amd64/uninstall-hook"))
		}, "linux-arm64/uninstall-hook is for linux/amd64, expected linux/arm64"},
		{"a program that needs shared libraries", func(t *testing.T, dir, _ string) {
			put(t, dir, "linux-amd64/uninstall-hook", read(t, fixtures, "dynamic"))
		}, "linux-amd64/uninstall-hook: the program is linked dynamically"},
		{"something else than a program", func(t *testing.T, dir, _ string) {
			put(t, dir, "gmsa-account-provider.exe", []byte("MZ"))
		}, "gmsa-account-provider.exe: not a Go program"},
		{"a DLL that is not the one in the installer", func(t *testing.T, dir, _ string) {
			put(t, dir, "ccg-plugin.dll", append(read(t, dir, "ccg-plugin.dll"), 0))
		}, "ccg-plugin-installer.exe does not contain the DLL ccg-plugin.dll from the same directory"},
		{"a signed program among unsigned ones", func(t *testing.T, dir, _ string) {
			exe := read(t, dir, "gmsa-account-provider.exe")
			// The entry of the security directory: PE header, 24 bytes, then 112 of the optional header, then 4 entries
			// of 8.
			at := int(exe[0x3c]) + 24 + 112 + 4*8
			put(t, dir, "gmsa-account-provider.exe", append(append(exe[:at:at], 0, 0, 0, 1, 8, 0, 0, 0), exe[at+8:]...))
		}, "only one of ccg-plugin.dll and gmsa-account-provider.exe is signed"},
		{"to replace what is no layout", func(t *testing.T, _, out string) {
			put(t, out, "photo.jpg", nil)
		}, "is neither empty nor an image layout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, out := dist(t), filepath.Join(t.TempDir(), "image")
			c.spoil(t, dir, out)
			_, err := build(context.Background(),
				options{version: "v1", dist: dir, out: out, base: scratch, log: io.Discard})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, err := os.Stat(filepath.Join(out, "index.json")); err == nil {
				t.Error("a layout was written")
			}
		})
	}
}

func TestBuildReplacesALayout(t *testing.T) {
	t.Parallel()
	dir := dist(t)
	out, first := built(t, dir, scratch)
	second, err := build(context.Background(),
		options{version: "v2", dist: dir, out: out, base: scratch, log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	_, now, err := open(out)
	if err != nil || now != second || now == first {
		t.Errorf("the layout holds %s (%v), want %s", now, err, second)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(out), ".image-*")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestPushRejectsInvalidInput(t *testing.T) {
	t.Parallel()
	host := loopback(t)
	dir := dist(t)
	good, _ := built(t, dir, scratch)
	damaged, _ := built(t, dir, scratch)
	blobs, err := filepath.Glob(filepath.Join(damaged, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(blobs, func(a, b string) int { return len(read(t, "", b)) - len(read(t, "", a)) })
	layer := read(t, "", blobs[0])
	layer[len(layer)/2] ^= 1
	put(t, "", blobs[0], layer)

	for _, c := range []struct{ name, layout, to, want string }{
		{"a layout that is not there", t.TempDir(), host + "/a/b:v1", "cannot be read, create it with images build"},
		{"a damaged layout", damaged, host + "/a/b:v1", "is damaged, build it again"},
		{"a tag with a plus", good, host + "/a/b:v1+x", "must be HOST[:PORT]/PATH:TAG"},
		{"no tag", good, host + "/a/b", "must be HOST[:PORT]/PATH:TAG"},
		{"a registry that is not there", good, "127.0.0.1:1/a/b:v1", "push to 127.0.0.1:1/a/b:v1"},
	} {
		err := push(context.Background(), c.layout, c.to, false, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
