package ad

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// If apt has no recent Samba, hack/apt.sh derives a source for backports from apt's configured sources.
func TestTheBackportsSourceDerivesFromTheMachinesSources(t *testing.T) {
	for name, test := range map[string]struct{ files, want []string }{
		"one line": {
			[]string{"# deb http://off.example/debian bookworm main\ndeb-src http://src.example/debian bookworm main\ndeb http://sec.example/debian-security bookworm-security main\n" +
				"deb [arch=amd64 signed-by=/k.gpg] https://list.example/debian  bookworm main contrib # ours\n"},
			[]string{"# list", "deb [arch=amd64 signed-by=/k.gpg] https://list.example/debian bookworm-backports main"}},
		"Windows line endings": {[]string{"deb http://plain.example/debian bookworm main\r\n"}, []string{"# list", "deb http://plain.example/debian bookworm-backports main"}},
		"deb822": {
			[]string{"Types: deb\nURIs: http://sec.example/\nSuites: bookworm-security\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/\nSuites: bookworm\n\nTypes: deb-src\nURIs: http://src.example/\nSuites: bookworm\n\n" +
				"Types: deb deb-src\n# the mirror\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /k.gpg\n"},
			[]string{"# sources", "Types: deb", "URIs: http://one.example/debian", "Suites: bookworm-backports", "Components: main", "Signed-By: /k.gpg"}},
		"a key in the file": {
			[]string{"Types: deb\nURIs: http://one.example/debian\nSuites: bookworm\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"},
			[]string{"# sources", "Types: deb", "URIs: http://one.example/debian", "Suites: bookworm-backports", "Components: main", "Signed-By:", " -----BEGIN PGP PUBLIC KEY BLOCK-----", " .", " mQINBF"}},
		"the second file, without a final newline": {
			[]string{"Types: deb\nURIs: http://x.example\nSuites: trixie\n", "Types: deb\nURIs: http://y.example\nSuites: bookworm"},
			[]string{"# sources", "Types: deb", "URIs: http://y.example", "Suites: bookworm-backports", "Components: main"}},
		"none": {[]string{"deb http://x.example trixie main\n"}, nil},
	} {
		args := []string{"-v", "codename=bookworm", "-f", "../../../hack/backports.awk"}
		for i, content := range test.files {
			path := filepath.Join(t.TempDir(), string(rune('a'+i)))
			must(t, os.WriteFile(path, []byte(content), 0o600))
			args = append(args, path)
		}
		out, err := exec.Command("awk", args...).CombinedOutput()
		must(t, err)
		if want := strings.Join(test.want, "\n"); strings.TrimSuffix(string(out), "\n") != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, out, want)
		}
	}
}
