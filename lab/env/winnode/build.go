package winnode

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildInstaller builds an installer that has a DLL of another version in it, in dir, and returns its path.
func BuildInstaller(ctx context.Context, dir, version string) (string, error) {
	top := filepath.Dir(Dist())
	dll, exe, overlay := filepath.Join(dir, "ccg-plugin.dll"), filepath.Join(dir, "ccg-plugin-installer.exe"), filepath.Join(dir, "overlay.json")
	// The embedded file is replaced for this build alone; the one in the checkout is another build's.
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(top, "internal", "installer", "dll", "ccg-plugin.dll"): dll}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", err
	}
	for _, command := range [][]string{
		{filepath.Join(top, "hack", "build-dll.sh"), dll, version},
		{"env", "GOOS=windows", "CGO_ENABLED=0", "go", "build", "-trimpath", "-overlay", overlay, "-o", exe, "./cmd/ccg-plugin-installer"},
	} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Dir = top
		// What the lab is built with, its GOFLAGS above all, is not for these.
		cmd.Env = append(os.Environ(), "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%q: %w\n%s", command, err, out)
		}
	}
	return exe, nil
}
