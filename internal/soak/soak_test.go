package soak

import "testing"

func TestNDividesByFifty(t *testing.T) {
	t.Setenv(Variable, "")
	for full, want := range map[int]int{1: 1, 49: 1, 50: 1, 5000: 100} {
		if got := N(full); got != want {
			t.Errorf("N(%d) = %d, want %d", full, got, want)
		}
	}
	t.Setenv(Variable, "1")
	if got := N(5000); got != 5000 {
		t.Errorf("with %s=1: N(5000) = %d", Variable, got)
	}
}
