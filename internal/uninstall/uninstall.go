// Package uninstall takes a Helm release off the nodes before its objects are deleted. It watches; what is to be done on a node
// is done there, by the pods of a DaemonSet: Stop ends the pods that keep the product installed, Wait waits for the pods
// that remove it. Both name the nodes that do not follow, and neither waits for ever.
package uninstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

const requestTimeout = 10 * time.Second

// DaemonSet is what Stop and Wait are about.
type DaemonSet struct {
	Namespace, Name string
	Selector        string // label selector of its pods
}

// Watcher asks the API server and says how far things are.
type Watcher struct {
	API      *kube.Client
	Progress io.Writer
	Every    time.Duration // how often it asks
}

// Stop deletes ds and waits, for at most timeout, until its pods are gone. Nodes that do not end theirs in time are named on
// Progress and are no error: Wait will not be satisfied by them.
func (w *Watcher) Stop(ctx context.Context, ds DaemonSet, timeout time.Duration) error {
	query := url.Values{"propagationPolicy": {"Background"}}
	var left []pod
	deleted := false
	gone, err := w.until(ctx, timeout, func(ctx context.Context) (done bool, state string, err error) {
		if !deleted {
			if _, err := w.ask(ctx, http.MethodDelete, ds.url(w.API, query), nil); err != nil {
				return false, "", fmt.Errorf("deleting it: %w", err)
			}
			deleted = true
		}
		left, err = w.pods(ctx, ds)
		return len(left) == 0, "waiting for the pods on " + nodeList(left), err
	})
	if err != nil {
		return fmt.Errorf("DaemonSet %s: %w", ds, err)
	}
	if !gone {
		fmt.Fprintf(w.Progress, "After %s these nodes have not ended the pods of DaemonSet %s: %s. The clean-up goes on without waiting for them.\n", timeout, ds, nodeList(left))
		return nil
	}
	fmt.Fprintf(w.Progress, "no pod of DaemonSet %s is left\n", ds)
	return nil
}

// ErrNotClean is the error of Wait when a node did not follow in time.
var ErrNotClean = errors.New("not every node is clean")

// Wait waits until cleaner, the DaemonSet whose pods clean, is ready on every node that it is meant for, and no pod of
// stopped is left. settle is how long a pod of cleaner may take to remove again what a pod of stopped did at its very end;
// it is waited for only if one was still there.
func (w *Watcher) Wait(ctx context.Context, cleaner, stopped DaemonSet, timeout, settle time.Duration) error {
	var dirty []string
	late := false
	clean, err := w.until(ctx, timeout, func(ctx context.Context) (bool, string, error) {
		var set daemonSet
		found, err := w.ask(ctx, http.MethodGet, cleaner.url(w.API, nil), &set)
		if err != nil {
			return false, "", fmt.Errorf("DaemonSet %s: %w", cleaner, err)
		}
		if !found { // tools that run hooks in no order make it at the same time
			return false, "", fmt.Errorf("DaemonSet %s, which cleans the nodes, does not exist; run helm uninstall again", cleaner)
		}
		cleaning, err := w.pods(ctx, cleaner)
		if err != nil {
			return false, "", err
		}
		running, err := w.pods(ctx, stopped)
		if err != nil {
			return false, "", err
		}
		late = late || len(running) > 0
		dirty = dirty[:0]
		for _, p := range running {
			dirty = append(dirty, p.node()+" (pod "+p.Metadata.Name+" has not ended)")
		}
		for _, p := range cleaning {
			if why := p.notReady(); why != "" {
				dirty = append(dirty, p.node()+" ("+why+")")
			}
		}
		slices.Sort(dirty)
		s := set.Status
		done := len(dirty) == 0 && s.ObservedGeneration >= set.Metadata.Generation && s.NumberReady >= s.DesiredNumberScheduled && len(cleaning) >= s.DesiredNumberScheduled
		return done, fmt.Sprintf("%d of %d nodes are clean", s.NumberReady, s.DesiredNumberScheduled), nil
	})
	switch {
	case err != nil:
		return err
	case !clean && len(dirty) == 0:
		return fmt.Errorf("%w after %s: the DaemonSet controller has not made all pods of DaemonSet %s; is kube-controller-manager running?", ErrNotClean, timeout, cleaner)
	case !clean:
		return fmt.Errorf(`%w. After %s, these are not: %s.
Every other node is clean. Mend these nodes, or delete the Node object of one that is gone for good (kubectl delete node NAME), and run helm uninstall again.
To leave these nodes as they are: helm uninstall --no-hooks`, ErrNotClean, timeout, strings.Join(dirty, ", "))
	}
	if late {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
	}
	fmt.Fprintln(w.Progress, "every node is clean")
	return nil
}

// permanent is an error that asking again does not mend.
type permanent struct{ error }

// until calls check until it is done or the time is over. An API server that cannot be reached is asked again; its last
// error is returned if it is still away at the end.
func (w *Watcher) until(ctx context.Context, timeout time.Duration, check func(context.Context) (done bool, state string, err error)) (bool, error) {
	deadline := time.Now().Add(timeout)
	said := ""
	for {
		done, state, err := check(ctx)
		if errors.As(err, &permanent{}) || done {
			return done, err
		}
		if err != nil {
			state = "asking again: " + err.Error()
		}
		if state != said {
			fmt.Fprintln(w.Progress, state)
			said = state
		}
		if !time.Now().Add(w.Every).Before(deadline) {
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(w.Every):
		}
	}
}

// ask makes one request. A 404 is found = false; into nil drops the answer.
func (w *Watcher) ask(ctx context.Context, method, url string, into any) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = w.API.Call(ctx, method, url, nil, into)
	switch kube.Code(err) {
	case http.StatusNotFound:
		return false, nil
	case http.StatusForbidden:
		return false, permanent{fmt.Errorf("the API server forbids it: %w; restore the release's Role and RoleBinding", err)}
	}
	return err == nil, err
}

func (w *Watcher) pods(ctx context.Context, ds DaemonSet) ([]pod, error) {
	var list struct {
		Items []pod `json:"items"`
	}
	query := url.Values{"labelSelector": {ds.Selector}}
	if _, err := w.ask(ctx, http.MethodGet, w.API.URL(query, "api", "v1", "namespaces", ds.Namespace, "pods"), &list); err != nil {
		return nil, fmt.Errorf("pods of DaemonSet %s: %w", ds, err)
	}
	return list.Items, nil
}

func (ds DaemonSet) url(api *kube.Client, query url.Values) string {
	return api.URL(query, "apis", "apps", "v1", "namespaces", ds.Namespace, "daemonsets", ds.Name)
}

func (ds DaemonSet) String() string { return ds.Namespace + "/" + ds.Name }
