//go:build faultpoints

package endpoint

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestMain lets this binary be the provider that is killed: with an endpoint's number in the environment it publishes
// and, if it gets that far, withdraws.
func TestMain(m *testing.M) {
	root := os.Getenv("ENDPOINT_TEST_ROOT")
	if root == "" {
		os.Exit(m.Run())
	}
	n, _ := strconv.Atoi(os.Getenv("ENDPOINT_TEST_NUMBER"))
	p, err := Publisher{Root: root}.Publish(ref, sample(uint16(n)))
	if err == nil {
		err = p.Withdraw()
	}
	if err != nil {
		panic(err)
	}
}

// A provider is killed at every step of a publication and of a withdrawal while 8 readers resolve in a loop: each
// reader has one whole generation or a clear error, and the next provider's publication is found by all.
func TestAKilledProviderLeavesACompleteGenerationOrAClearError(t *testing.T) {
	points := passed(t, tempDir(t))
	if len(points) < 10 {
		t.Fatalf("only %d points: %q", len(points), points)
	}
	root := tempDir(t)
	publish(t, root, ref, 1)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				e, err := Resolve(root, ref)
				if err == nil {
					checkWhole(t, e)
				} else if !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrDamaged) {
					t.Errorf("an unclear error: %v", err)
				}
			}
		})
	}
	for i, point := range points {
		before := uint16(1000 + i)
		survivor := publish(t, root, ref, before)
		kill(t, root, uint16(2000+i), point)
		e, err := Resolve(root, ref)
		switch {
		case strings.HasPrefix(point, "withdraw."):
			if !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v, %v", point, e, err)
			}
			if survivor.InForce() {
				t.Errorf("%s: the other provider does not see that it must publish again", point)
			}
		case err != nil:
			t.Errorf("%s: killing the new provider took the old one's endpoint: %v", point, err)
		case e.Port != before && e.Port != uint16(2000+i):
			t.Errorf("%s: port %d", point, e.Port)
		}
		publish(t, root, ref, 3000)
		if e, err := Resolve(root, ref); err != nil || e.Port != 3000 {
			t.Errorf("%s: the next provider is not found: %v, %v", point, e, err)
		}
	}
	close(stop)
	readers.Wait()
}

func provider(root string, n uint16, stopAt string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ENDPOINT_TEST_ROOT="+root, "ENDPOINT_TEST_NUMBER="+strconv.Itoa(int(n)),
		"CCGRKC_STOP_AT="+stopAt)
	return cmd
}

func passed(t *testing.T, root string) (points []string) {
	t.Helper()
	out, err := provider(root, 1, "list").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		points = append(points, strings.TrimSpace(strings.TrimPrefix(line, "faultpoint: passed ")))
	}
	return points
}

func kill(t *testing.T, root string, n uint16, point string) {
	t.Helper()
	cmd := provider(root, n, point)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || !strings.Contains(line, "stopped at "+point) {
		t.Errorf("%s was not reached: %q, %v", point, line, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
