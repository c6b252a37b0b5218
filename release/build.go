package main

import (
	"bytes"
	"context"
	"debug/elf"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const scratch = "scratch"

type options struct {
	version, revision string
	dist, out         string
	base              string
	log               io.Writer
}

// The index and the images have no os.version: containerd accepts an entry without one on every Windows Server
// (containerd/platforms, windowsVersionMatcher). The images of HostProcess containers contain no part of an operating
// system, so they run on every version.
var windowsAMD64 = v1.Platform{OS: "windows", Architecture: "amd64"}

// program is a built program with its build information.
type program struct {
	name string
	data []byte
	info *debug.BuildInfo
}

// part is the image of one platform.
type part struct {
	platform v1.Platform
	image    v1.Image
}

// build writes the layout and returns the digest of the index in it.
func build(ctx context.Context, o options) (v1.Hash, error) {
	lists := map[string][]byte{} // SBOMs by file name
	windows, err := windowsImage(ctx, o, lists)
	if err != nil {
		return v1.Hash{}, err
	}
	parts := []part{{windowsAMD64, windows}}
	for _, arch := range []string{"amd64", "arm64"} {
		platform := v1.Platform{OS: "linux", Architecture: arch}
		image, err := linuxImage(o, platform, lists)
		if err != nil {
			return v1.Hash{}, err
		}
		parts = append(parts, part{platform, image})
	}

	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range parts {
		index = mutate.AppendManifests(index,
			mutate.IndexAddendum{Add: p.image, Descriptor: v1.Descriptor{Platform: &p.platform}})
	}
	index = mutate.Annotations(index, labels(o)).(v1.ImageIndex) // for the image's page in a registry
	digest, err := index.Digest()
	if err != nil {
		return v1.Hash{}, err
	}
	if err := writeLayout(index, o.out); err != nil {
		return v1.Hash{}, err
	}
	sboms := filepath.Join(filepath.Dir(o.out), "sbom")
	if err := os.MkdirAll(sboms, 0o755); err != nil {
		return v1.Hash{}, err
	}
	for name, list := range lists {
		if err := os.WriteFile(filepath.Join(sboms, name), list, 0o644); err != nil {
			return v1.Hash{}, err
		}
	}

	for _, p := range parts {
		size, err := transferSize(p.image)
		if err != nil {
			return v1.Hash{}, err
		}
		fmt.Fprintf(o.log, "%-14s %.1f MB to pull\n", p.platform.String(), float64(size)/1e6)
	}
	fmt.Fprintf(o.log, "%-14s %s in %s\n", "index", digest, o.out)
	return digest, nil
}

func windowsImage(ctx context.Context, o options, lists map[string][]byte) (v1.Image, error) {
	installer, err := readProgram(o.dist, "ccg-plugin-installer.exe", windowsAMD64)
	if err != nil {
		return nil, err
	}
	provider, err := readProgram(o.dist, "gmsa-account-provider.exe", windowsAMD64)
	if err != nil {
		return nil, err
	}
	probe, err := readProgram(o.dist, "container-probe.exe", windowsAMD64)
	if err != nil {
		return nil, err
	}
	dll, err := readProgram(o.dist, "ccg-plugin.dll", windowsAMD64)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(installer.data, dll.data) {
		return nil, fmt.Errorf("%s does not contain the DLL %s from the same directory: build both again",
			installer.name, dll.name)
	}
	if err := signedAlike(o.log, dll, installer, provider, probe); err != nil {
		return nil, err
	}
	installerList, err := components(installer, o.version, dll)
	if err != nil {
		return nil, err
	}
	providerList, err := components(provider, o.version)
	if err != nil {
		return nil, err
	}
	probeList, err := components(probe, o.version)
	if err != nil {
		return nil, err
	}
	lists["ccg-plugin-installer.cdx.json"] = installerList
	lists["container-probe.cdx.json"] = probeList
	lists["gmsa-account-provider.cdx.json"] = providerList

	// The programs are in the image's root and need no path. A HostProcess container without a working directory starts
	// in its own root, C:\hpc, and Windows searches programs there first (containerd, CRI's container spec for Windows,
	// and microsoft/hcsshim, internal/jobcontainers, CreateProcess and getApplicationName), and again after PATH. The
	// image therefore has no working directory, and a PATH with the directories that all hosts have.
	own, err := windowsLayer([]file{
		{installer.name, installer.data},
		{provider.name, provider.data},
		{probe.name, probe.data},
		{"sbom/ccg-plugin-installer.cdx.json", installerList},
		{"sbom/gmsa-account-provider.cdx.json", providerList},
		{"sbom/container-probe.cdx.json", probeList},
	})
	if err != nil {
		return nil, err
	}
	base, labelsOfBase, err := windowsBaseLayers(ctx, o.base)
	if err != nil {
		return nil, err
	}
	config := v1.Config{Env: []string{`PATH=C:\Windows\system32;C:\Windows`}, Labels: labels(o)}
	for k, v := range labelsOfBase {
		config.Labels[k] = v
	}
	return image(windowsAMD64, config, append(base, own)...)
}

// windowsBaseLayers returns the layers and the labels of the base.
func windowsBaseLayers(ctx context.Context, base string) ([]v1.Layer, map[string]string, error) {
	if base == scratch {
		l, err := windowsBase()
		return []v1.Layer{l}, nil, err
	}
	ref, err := name.ParseReference(base)
	if err != nil {
		return nil, nil, fmt.Errorf("--base %q: must be scratch or an image reference: %w", base, err)
	}
	fail := func(err error) error {
		return fmt.Errorf("base image %s cannot be pulled: %w (--base scratch, the default, needs no network)", ref,
			err)
	}
	image, err := remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(windowsAMD64),
		remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return nil, nil, fail(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, nil, fail(err)
	}
	if config.OS != windowsAMD64.OS || config.Architecture != windowsAMD64.Architecture {
		return nil, nil, fmt.Errorf("base image %s is for %s/%s, expected %s", ref, config.OS, config.Architecture,
			windowsAMD64)
	}
	digest, err := image.Digest()
	if err != nil {
		return nil, nil, fail(err)
	}
	layers, err := image.Layers()
	if err != nil {
		return nil, nil, fail(err)
	}
	return layers, map[string]string{
		"org.opencontainers.image.base.name":   ref.Name(),
		"org.opencontainers.image.base.digest": digest.String(),
	}, nil
}

// linuxPrograms are the programs of the Linux images, one layer each. The first is the entry point.
var linuxPrograms = []string{"uninstall-hook", "gmsa-webhook", "gmsactl"}

func linuxImage(o options, platform v1.Platform, lists map[string][]byte) (v1.Image, error) {
	var layers []v1.Layer
	for _, name := range linuxPrograms {
		p, err := readProgram(filepath.Join(o.dist, "linux-"+platform.Architecture), name, platform)
		if err != nil {
			return nil, err
		}
		list, err := components(p, o.version)
		if err != nil {
			return nil, err
		}
		lists[fmt.Sprintf("%s-linux-%s.cdx.json", name, platform.Architecture)] = list
		l, err := linuxLayer([]file{{name, p.data}, {"sbom/" + name + ".cdx.json", list}})
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	// A number, because a kubelet cannot check runAsNonRoot with a name. 65532 is usual for images without a shell.
	config := v1.Config{
		User:       "65532:65532",
		Entrypoint: []string{"/" + linuxPrograms[0]},
		WorkingDir: "/",
		Labels:     labels(o),
	}
	return image(platform, config, layers...)
}

func image(platform v1.Platform, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	created := v1.Time{Time: epoch}
	var additions []mutate.Addendum
	for _, l := range layers {
		additions = append(additions, mutate.Addendum{Layer: l, MediaType: types.OCILayer,
			History: v1.History{Created: created, CreatedBy: "ccgrkc/images"}})
	}
	i := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	i, err := mutate.ConfigFile(i, &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, Created: created, Config: config,
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(i, additions...)
}

// labels returns the labels of every image and the annotations of the index.
func labels(o options) map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title": "CCGRKC",
		"org.opencontainers.image.description": "Kubernetes as the secret store for Windows gMSAs: the CCG plugin, " +
			"its installer and the Account Provider",
		"org.opencontainers.image.source":        "https://github.com/ccgrkc/ccgrkc",
		"org.opencontainers.image.documentation": "https://github.com/ccgrkc/ccgrkc#readme",
		"org.opencontainers.image.licenses":      "Apache-2.0",
		"org.opencontainers.image.version":       o.version,
	}
	if o.revision != "" {
		l["org.opencontainers.image.revision"] = o.revision
	}
	return l
}

// readProgram reads a program and checks that it is for the platform and is linked statically.
func readProgram(dir, name string, platform v1.Platform) (program, error) {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return program{}, fmt.Errorf("%s does not exist: build it first", path)
	}
	if err != nil {
		return program{}, err
	}
	info, err := buildInfo(data)
	if err != nil {
		return program{}, fmt.Errorf("%s: not a Go program: %w", path, err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if is := settings["GOOS"] + "/" + settings["GOARCH"]; is != platform.String() {
		return program{}, fmt.Errorf("%s is for %s, expected %s", path, is, platform)
	}
	if platform.OS == "linux" {
		if err := static(data); err != nil {
			return program{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	return program{name, data, info}, nil
}

// static rejects a program that needs shared libraries, which the image does not contain.
func static(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("the program is linked dynamically: build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// signedAlike rejects a mix of signed and unsigned programs, which an interrupted release can leave.
func signedAlike(log io.Writer, programs ...program) error {
	first, err := signed(programs[0])
	if err != nil {
		return err
	}
	for _, p := range programs[1:] {
		s, err := signed(p)
		if err != nil {
			return err
		}
		if s != first {
			return fmt.Errorf("only one of %s and %s is signed: build both again, or sign both",
				programs[0].name, p.name)
		}
	}
	if first {
		fmt.Fprintln(log, "the Windows programs have Authenticode signatures")
	} else {
		fmt.Fprintln(log, "the Windows programs are not signed")
	}
	return nil
}

func signed(p program) (bool, error) {
	f, err := pe.NewFile(bytes.NewReader(p.data))
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.name, err)
	}
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return false, fmt.Errorf("%s is not a 64-bit program", p.name)
	}
	return h.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY].Size != 0, nil
}

// writeLayout writes a layout at dir with index as its only image. It replaces an existing layout when the new one is
// complete.
func writeLayout(index v1.ImageIndex, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := replaceable(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	p, err := layout.Write(tmp, empty.Index)
	if err != nil {
		return fmt.Errorf("write layout %s: %w", dir, err)
	}
	if err := p.AppendIndex(index); err != nil {
		return fmt.Errorf("write layout %s: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// replaceable reports an error if dir is neither empty nor a layout.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
		return fmt.Errorf("%s is neither empty nor an image layout: remove it, or specify another directory", dir)
	}
	return nil
}

// transferSize returns the number of bytes that a node pulls.
func transferSize(i v1.Image) (int64, error) {
	m, err := i.Manifest()
	if err != nil {
		return 0, err
	}
	size, err := i.Size() // the manifest
	if err != nil {
		return 0, err
	}
	size += m.Config.Size
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}
