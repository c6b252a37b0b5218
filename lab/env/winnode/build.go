package winnode

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildInstaller builds an installer with a DLL of another version, in dir, and returns its path.
func BuildInstaller(ctx context.Context, dir, version string) (string, error) {
	top := filepath.Dir(Dist())
	dll, exe := filepath.Join(dir, "ccg-plugin.dll"), filepath.Join(dir, "ccg-plugin-installer.exe")
	overlay := filepath.Join(dir, "overlay.json")
	// The overlay replaces the embedded file only in this build. The file in the checkout belongs to make build.
	embedded := filepath.Join(top, "internal", "installer", "dll", "ccg-plugin.dll")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{embedded: dll}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", err
	}
	for _, command := range [][]string{
		{filepath.Join(top, "hack", "build-dll.sh"), dll, version},
		{"env", "GOOS=windows", "CGO_ENABLED=0", "go", "build", "-trimpath", "-overlay", overlay, "-o", exe,
			"./cmd/ccg-plugin-installer"},
	} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Dir = top
		// The lab's GOFLAGS do not apply to the product.
		cmd.Env = append(os.Environ(), "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%q: %w\n%s", command, err, out)
		}
	}
	return exe, nil
}
