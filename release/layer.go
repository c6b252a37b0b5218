package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"path"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the only time in images and hives: the earliest one that every file system and archive format supports.
var epoch = time.Date(1980, time.January, 1, 0, 0, 0, 0, time.UTC)

type file struct {
	name string // with slashes, but no leading one
	data []byte
}

// layer creates a layer of files, their parent directories and further directories. finish adds to each header what the
// platform requires.
func layer(files []file, finish func(*tar.Header), dirs ...string) (v1.Layer, error) {
	contents := map[string][]byte{}
	for _, f := range files {
		contents[f.name] = f.data
		for d := path.Dir(f.name); d != "."; d = path.Dir(d) {
			dirs = append(dirs, d)
		}
	}
	for _, d := range dirs {
		contents[d+"/"] = nil
	}
	// Sorted, so that a directory precedes its content, as nodes require, and that the result is reproducible.
	var names []string
	for name := range contents {
		names = append(names, name)
	}
	slices.Sort(names)

	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o555, Size: int64(len(contents[name])),
			ModTime: epoch}
		if name[len(name)-1] == '/' {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		finish(h)
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(contents[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
	return tarball.LayerFromOpener(opener, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching,
		tarball.WithCompressionLevel(gzip.BestCompression))
}

// linuxLayer creates a layer of a Linux image. Everything is owned by root and read-only.
func linuxLayer(files []file) (v1.Layer, error) {
	return layer(files, func(h *tar.Header) { h.Format = tar.FormatUSTAR })
}
