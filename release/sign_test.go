package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/pe"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// signer is a throw-away certificate for signing, and the CA that vouches for it, as files.
type signer struct {
	ca, cert, key, lockedKey, password string
}

const secret = "correct horse & battery"

func newSigner(t *testing.T) signer {
	t.Helper()
	dir := t.TempDir()
	caKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "throw-away CA"},
		NotBefore: time.Now().Add(-time.Hour),
		NotAfter:  time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "throw-away signer"}, NotBefore: ca.NotBefore,
		NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	key := must(rsa.GenerateKey(rand.Reader, 3072))
	write := func(name string, blocks ...*pem.Block) string {
		var b bytes.Buffer
		for _, block := range blocks {
			if err := pem.Encode(&b, block); err != nil {
				t.Fatal(err)
			}
		}
		put(t, dir, name, b.Bytes())
		return filepath.Join(dir, name)
	}
	caDER := must(x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey))
	leafDER := must(x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey))
	keyDER := x509.MarshalPKCS1PrivateKey(key)
	//lint:ignore SA1019 the only encrypted form of a key that the standard library writes; OpenSSL reads it
	locked := must(x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", keyDER, []byte(secret), x509.PEMCipherAES256))
	put(t, dir, "password", []byte(secret+"\n")) // as echo writes it
	return signer{
		ca:        write("ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		cert:      write("cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: leafDER}),
		key:       write("key.pem", &pem.Block{Type: "RSA PRIVATE KEY", Bytes: keyDER}),
		lockedKey: write("locked.pem", locked),
		password:  filepath.Join(dir, "password"),
	}
}

// sign runs the script of the release and returns what it printed.
func sign(file string, env ...string) (string, error) {
	c := exec.Command("../hack/sign.sh", file)
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	out, err := c.CombinedOutput()
	return string(out), err
}

// verify asks osslsigncode, which prints all that it finds, whether a signature is whole and ends at the CA.
func verify(s signer, file string) (string, error) {
	out, err := exec.Command("osslsigncode", "verify", "-CAfile", s.ca, "-in", file).CombinedOutput()
	return string(out), err
}

func TestSignaturesVerifyAndDetectChanges(t *testing.T) {
	t.Parallel()
	need(t, "osslsigncode")
	s, foreign := newSigner(t), newSigner(t)
	dir := dist(t)
	for _, name := range []string{"gmsa-account-provider.exe", "ccg-plugin.dll"} {
		file := filepath.Join(dir, name)
		before := read(t, "", file)
		if out, err := verify(s, file); err == nil {
			t.Errorf("%s: an unsigned file passes:\n%s", name, out)
		}
		if out, err := sign(file, "SIGN_CERT="+s.cert, "SIGN_KEY="+s.key); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		out, err := verify(s, file)
		if err != nil || !strings.Contains(out, "CN=throw-away signer") ||
			!strings.Contains(out, "Signature verification: ok") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		after := read(t, "", file)
		if yes, err := signed(program{name: name, data: after}); !yes || err != nil {
			t.Errorf("%s: build does not see the signature: %v", name, err)
		}
		if i, err := buildInfo(after); err != nil || i.GoVersion == "" {
			t.Errorf("%s: no build information after signing: %v", name, err)
		}
		if out, err := verify(foreign, file); err == nil {
			t.Errorf("%s: passes with another CA:\n%s", name, out)
		}
		// One bit in the code, and nothing else.
		flipped := bytes.Clone(after)
		flipped[section(t, before, ".text")] ^= 1
		put(t, dir, "flipped", flipped)
		if out, err := verify(s, filepath.Join(dir, "flipped")); err == nil {
			t.Errorf("%s: passes with a flipped bit:\n%s", name, out)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.??????")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// section returns where a section of a program begins in its file.
func section(t *testing.T, data []byte, name string) int {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return int(f.Section(name).Offset)
}

// A release as make makes it: the DLL is signed before the installer is built around it.
func TestImageOfSignedPrograms(t *testing.T) {
	t.Parallel()
	need(t, "osslsigncode")
	s := newSigner(t)
	dir := dist(t)
	env := []string{"SIGN_CERT=" + s.cert, "SIGN_KEY=" + s.lockedKey, "SIGN_PASS_FILE=" + s.password}
	step := func(name string) {
		t.Helper()
		out, err := sign(filepath.Join(dir, name), env...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	step("ccg-plugin.dll")
	source := filepath.Join(dir, "source")
	for _, name := range []string{"go.mod", "carrier/main.go"} {
		put(t, source, name, read(t, filepath.Join(fixtures, "source"), name))
	}
	put(t, source, "carrier/ccg-plugin.dll", read(t, dir, "ccg-plugin.dll"))
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o",
		filepath.Join(dir, "ccg-plugin-installer.exe"), "./carrier")
	c.Dir = source
	c.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	step("ccg-plugin-installer.exe")
	step("gmsa-account-provider.exe")
	step("container-probe.exe")

	out, _ := built(t, dir, scratch)
	index, _, err := open(out)
	if err != nil {
		t.Fatal(err)
	}
	m := must(index.IndexManifest())
	layers := must(must(index.Image(m.Manifests[0].Digest)).Layers())
	checked := 0
	for _, e := range entries(t, layers[len(layers)-1]) {
		if !strings.HasSuffix(e.header.Name, ".exe") {
			continue
		}
		put(t, dir, "pulled.exe", e.data)
		if out, err := verify(s, filepath.Join(dir, "pulled.exe")); err != nil {
			t.Errorf("%s: %v\n%s", e.header.Name, err, out)
		}
		checked++
		if !strings.HasSuffix(e.header.Name, "installer.exe") {
			continue
		}
		dll := read(t, dir, "ccg-plugin.dll")
		at := bytes.Index(e.data, dll)
		if at < 0 {
			t.Fatal("the installer does not hold the signed DLL")
		}
		put(t, dir, "carried.dll", e.data[at:at+len(dll)])
		if out, err := verify(s, filepath.Join(dir, "carried.dll")); err != nil {
			t.Errorf("the DLL in the installer: %v\n%s", err, out)
		}
	}
	if checked != 3 {
		t.Errorf("%d programs in the image, want 3", checked)
	}
}

func TestSigningRejectsInvalidInput(t *testing.T) {
	t.Parallel()
	need(t, "osslsigncode")
	s := newSigner(t)
	dir := dist(t)
	file := filepath.Join(dir, "gmsa-account-provider.exe")
	before := read(t, "", file)
	put(t, dir, "wrong", []byte("wrong horse"))
	put(t, dir, "text.exe", []byte("not a program"))
	for _, c := range []struct {
		name, file string
		env        []string
		want       string
	}{
		{"no certificate", file, nil, "SIGN_CERT is not set"},
		{"no key", file, []string{"SIGN_CERT=" + s.cert}, "SIGN_KEY is not set"},
		{"a certificate that is not there", file, []string{"SIGN_CERT=/absent.pem", "SIGN_KEY=" + s.key},
			"/absent.pem cannot be read"},
		{"a key of another certificate", file, []string{"SIGN_CERT=" + s.cert, "SIGN_KEY=" + newSigner(t).key},
			"is not signed"},
		{"a wrong password", file, []string{"SIGN_CERT=" + s.cert, "SIGN_KEY=" + s.lockedKey,
			"SIGN_PASS_FILE=" + filepath.Join(dir, "wrong")}, "is not signed"},
		{"what is no program", filepath.Join(dir, "text.exe"), []string{"SIGN_CERT=" + s.cert, "SIGN_KEY=" + s.key},
			"is not signed"},
	} {
		out, err := sign(c.file, c.env...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, printed %q, want %q", c.name, err, out, c.want)
		}
		if strings.Contains(out, "horse") {
			t.Errorf("%s: the password is shown: %q", c.name, out)
		}
		if !bytes.Equal(before, read(t, "", file)) {
			t.Fatalf("%s: the program has changed", c.name)
		}
	}
}
