package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Everything between the Secret and ccg.exe, with the programs as they are released: nothing is there at first, and
// nothing at the end.
func TestTheCredentialPathOnThisHost(t *testing.T) {
	answered := install(t)
	a := serve(t)

	const atOnce = 32
	objects := make([]*com.Object, atOnce)
	errs := make([]error, atOnce)
	var activations, calls sync.WaitGroup
	for i := range atOnce {
		activations.Go(func() { objects[i], errs[i] = com.Activate(com.ClassID) })
	}
	activations.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range atOnce {
		calls.Go(func() {
			defer objects[i].Release()
			got, err := objects[i].GetPasswordCredentials(a.input())
			if err != nil {
				errs[i] = err
				return
			}
			defer got.Password.Wipe()
			if got.DomainName != wanted.domainName || got.Username != wanted.username {
				t.Errorf("got domain %q, user %q; want %q, %q", got.DomainName, got.Username, wanted.domainName,
					wanted.username)
			}
			if !slices.Equal(got.Password.Reveal(), utf16.Encode([]rune(wanted.password))) {
				t.Error("the password is not the Secret's")
			}
		})
	}
	calls.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}

	a.kill()
	must(t, providerExe, "cleanup", "--namespace", a.namespace, "--secret", a.secret)
	wantAbsent(t, a.directory())
	wantRefusal(t, a.input(), cause.EndpointAbsent)
	uninstall(t)
	wantAbsent(t, filepath.Dir(answered.Module))
}

func wantAbsent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", path, err)
	}
}

func wantRefusal(t *testing.T, input string, want *cause.Cause) {
	t.Helper()
	got, err := ask(input)
	got.Password.Wipe()
	var hr com.HRESULT
	if !errors.As(err, &hr) || uint32(hr) != want.HResult {
		t.Errorf("plugin input %q: got %v, want %v", input, err, com.HRESULT(want.HResult))
	}
}
