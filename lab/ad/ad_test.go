package ad

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

func TestFirst(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t0 := time.Now()
	d, err := Start(ctx, filepath.Join(t.TempDir(), "d"), Corp)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Stop()
	t.Log(time.Since(t0), d)
	for range 3 {
		t0 = time.Now()
		d2, err := Start(ctx, filepath.Join(t.TempDir(), "d"), Corp)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(time.Since(t0), d2.Address)
		d2.Stop()
	}
	t.Log(d.RollManagedPassword(ctx, "web01"))
}
