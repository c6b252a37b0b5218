package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func decode(t *testing.T, list []byte) *cdx.BOM {
	t.Helper()
	var bom cdx.BOM
	d := cdx.NewBOMDecoder(bytes.NewReader(list), cdx.BOMFileFormatJSON)
	if err := d.Decode(&bom); err != nil {
		t.Fatal(err)
	}
	return &bom
}

// This test's own binary has dependencies whose versions go.mod tells.
func TestComponentsAreTheModulesOfTheProgram(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data := read(t, "", self)
	info, err := buildInfo(data)
	if err != nil {
		t.Fatal(err)
	}
	p := program{"images.test", data, info}
	list, err := components(p, "v1.2.3+b")
	if err != nil {
		t.Fatal(err)
	}
	bom := decode(t, list)
	sum := sha256.Sum256(data)
	root := bom.Metadata.Component
	if got := (*root.Hashes)[0].Value; got != hex.EncodeToString(sum[:]) {
		t.Errorf("hash of the program: %s", got)
	}
	if want := "pkg:golang/github.com/ccgrkc/ccgrkc/release@v1.2.3%2Bb"; !strings.HasPrefix(root.PackageURL, want) {
		t.Errorf("purl %q, want %q", root.PackageURL, want)
	}
	found := map[string]string{}
	for _, c := range *bom.Components {
		found[c.Name] = c.PackageURL
	}
	gomod := string(read(t, "", "go.mod"))
	for _, module := range []string{"github.com/google/go-containerregistry", "github.com/CycloneDX/cyclonedx-go",
		"github.com/spf13/cobra"} {
		_, rest, _ := strings.Cut(gomod, module+" ")
		version, _, _ := strings.Cut(rest, "\n")
		if want := "pkg:golang/" + strings.ToLower(module) + "@" + version; found[module] != want {
			t.Errorf("%s: purl %q, want %q", module, found[module], want)
		}
	}
	if want := "pkg:golang/stdlib@" + strings.TrimPrefix(info.GoVersion, "go"); found["std"] != want {
		t.Errorf("standard library: purl %q, want %q", found["std"], want)
	}
	if len(found) != len(info.Deps)+1 {
		t.Errorf("%d components, want %d modules and the standard library", len(found), len(info.Deps))
	}

	again, err := components(p, "v1.2.3+b")
	if err != nil || !bytes.Equal(list, again) {
		t.Errorf("a second list of the same program differs (%v)", err)
	}
	other, err := components(p, "v1.2.4")
	if err != nil || decode(t, other).SerialNumber == bom.SerialNumber {
		t.Errorf("another version has the same serial number (%v)", err)
	}
}

func TestTheInstallerSBOMContainsTheDLL(t *testing.T) {
	t.Parallel()
	dir := dist(t)
	out, _ := built(t, dir, scratch)
	bom := decode(t, read(t, filepath.Dir(out), "sbom/ccg-plugin-installer.cdx.json"))
	sum := sha256.Sum256(read(t, dir, "ccg-plugin.dll"))
	for _, c := range *bom.Components {
		if c.Name != "ccg-plugin.dll" {
			continue
		}
		if c.Type != cdx.ComponentTypeLibrary || (*c.Hashes)[0].Value != hex.EncodeToString(sum[:]) {
			t.Errorf("ccg-plugin.dll is a %s with the hash %s", c.Type, (*c.Hashes)[0].Value)
		}
		if c.Components == nil || (*c.Components)[0].Name != "std" {
			t.Errorf("the modules of ccg-plugin.dll: %v", c.Components)
		}
		return
	}
	t.Error("ccg-plugin.dll is missing")
}
