package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"path"
	"runtime/debug"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// components returns the SBOM of p as CycloneDX 1.6 in JSON: the modules that `go version -m` shows, also of each
// program that p contains. It has no timestamp, and its serial number is a hash of the rest.
func components(p program, version string, inside ...program) ([]byte, error) {
	bom := cdx.NewBOM()
	root, modules := component(p, version)
	for _, in := range inside {
		c, m := component(in, version)
		for i := range m {
			m[i].BOMRef = in.name + "/" + m[i].BOMRef // both can contain the same module
		}
		c.Components = &m
		modules = append(modules, c)
	}
	bom.Metadata = &cdx.Metadata{Component: &root}
	bom.Components = &modules

	withoutSerial, err := encode(bom)
	if err != nil {
		return nil, fmt.Errorf("%s: SBOM: %w", p.name, err)
	}
	u := sha256.Sum256(withoutSerial)
	u[6] = u[6]&0x0f | 0x80 // RFC 9562: version 8, free to choose; variant 10
	u[8] = u[8]&0x3f | 0x80
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
	return encode(bom)
}

func encode(bom *cdx.BOM) ([]byte, error) {
	var b bytes.Buffer
	err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	return b.Bytes(), err
}

// component returns a program as a component, and its modules.
func component(p program, version string) (cdx.Component, []cdx.Component) {
	sum := sha256.Sum256(p.data)
	main := p.info.Main.Path
	c := cdx.Component{
		BOMRef: p.name, Type: cdx.ComponentTypeApplication, Name: p.name, Version: version,
		PackageURL: packageURL(main, version) + "#" + strings.TrimPrefix(p.info.Path, main+"/"),
		Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
		Licenses:   &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	}
	if path.Ext(p.name) == ".dll" {
		c.Type = cdx.ComponentTypeLibrary
	}
	var properties []cdx.Property
	for _, s := range p.info.Settings {
		properties = append(properties, cdx.Property{Name: "go:build:" + s.Key, Value: s.Value})
	}
	c.Properties = &properties

	modules := []cdx.Component{module(&debug.Module{Path: "std", Version: strings.TrimPrefix(p.info.GoVersion, "go")})}
	for _, m := range p.info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		modules = append(modules, module(m))
	}
	return c, modules
}

func module(m *debug.Module) cdx.Component {
	url := packageURL(m.Path, m.Version)
	c := cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: url}
	if m.Sum != "" { // the hash of a directory as in go.sum, not of a file, so it is not one of the component's hashes
		c.Properties = &[]cdx.Property{{Name: "go:sum", Value: m.Sum}}
	}
	return c
}

// packageURL returns a purl (ECMA-427). Its type golang requires lower case and the name stdlib for the standard
// library.
func packageURL(path, version string) string {
	if path == "std" {
		path = "stdlib"
	}
	return "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// buildInfo reads the build information of a Go program.
func buildInfo(data []byte) (*debug.BuildInfo, error) {
	return buildinfo.Read(bytes.NewReader(data))
}
