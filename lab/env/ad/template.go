package ad

import (
	"archive/tar"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ccgrkc/ccgrkc/lab/internal/cache"
)

// provisionAddress is the address in the templates. It is in TEST-NET-1 (RFC 5737), where nothing runs, so that a
// record which Start did not update is noticed.
const provisionAddress = "192.0.2.1"

// faketime is the library that shifts a domain controller's clock.
const faketime = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"

//go:embed template.go
var ownSource string

// Template returns the archive of a domain. It creates the archive once for each version of Samba and of these sources,
// in about 6 s.
func Template(ctx context.Context, o Options, progress io.Writer) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("a domain controller needs root, for ports below 1024")
	}
	query := exec.CommandContext(ctx, "/usr/bin/dpkg-query", "-W", "-f", "${Package} ${Version}\n",
		"samba-ad-dc", "samba-ad-provision")
	version, err := query.Output()
	if err != nil {
		return "", fmt.Errorf("samba-ad-dc is not installed: %w; run hack/apt.sh", err)
	}
	o.Forwarder, o.ClockOffset = "", 0 // not part of the template
	options, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	key := cache.Key(version, []byte(script), []byte(ownSource), []byte(smbConf), options)
	return cache.Get(ctx, "ad-"+key+".tar.gz", progress, func(path string) error { return makeTemplate(ctx, path, o) })
}

func makeTemplate(ctx context.Context, path string, o Options) error {
	dir, err := os.MkdirTemp("", "ccgrkc-ad-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := writeConfig(dir, o, provisionAddress); err != nil {
		return err
	}
	c, err := startConsole(dir)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		do   string
		with map[string]any
	}{
		{"provision", map[string]any{
			"realm":    strings.ToUpper(o.DNSName),
			"netbios":  o.NetBIOS,
			"host":     host,
			"address":  provisionAddress,
			"password": string(newPassword().Reveal()),
		}},
		{"add_user", map[string]any{"name": o.Reader, "password": string(newPassword().Reveal())}},
		{"add_group", map[string]any{"name": Group, "members": []string{o.Reader}}},
		{"add_gmsa", map[string]any{
			"name":             o.GMSA,
			"readers":          []string{Group},
			"interval":         30,
			"encryption_types": AES | RC4,
		}},
	} {
		if err = c.call(ctx, nil, step.do, step.with); err != nil {
			break
		}
	}
	c.close()
	if err != nil {
		log, _ := os.ReadFile(c.log)
		return fmt.Errorf("create domain %s: %w\n%s", o.DNSName, err, log)
	}
	return pack(dir, path)
}

// pack writes a domain's databases and keys to an archive, without the files of a run.
func pack(dir, path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	w := tar.NewWriter(z)
	for _, sub := range []string{"private", "state"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() && !e.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			header, err := tar.FileInfoHeader(info, "")
			if err != nil {
				return err
			}
			header.Name = name
			if err := w.WriteHeader(header); err != nil || e.IsDir() {
				return err
			}
			from, err := os.Open(path)
			if err != nil {
				return err
			}
			defer from.Close()
			_, err = io.Copy(w, from)
			return err
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), z.Close())
}

func unpack(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	r := tar.NewReader(z)
	for {
		header, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, header.Name)
		if header.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(to, 0o700); err != nil {
				return err
			}
			continue
		}
		if err := unpackFile(r, to); err != nil {
			return err
		}
	}
}

func unpackFile(from io.Reader, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
