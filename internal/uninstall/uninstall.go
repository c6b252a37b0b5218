// Package uninstall cleans up nodes before Helm deletes a release's objects. The pods of a DaemonSet do the work on the
// nodes. Stop deletes the DaemonSet that keeps the product installed, and Wait waits for the DaemonSet that removes it.
// Both report the nodes that are late, and both have a time limit.
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

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logonce"
)

// lastCheck is how long a check can take that begins just before the time limit.
const lastCheck = 10 * time.Second

// DaemonSet identifies a DaemonSet and its pods.
type DaemonSet struct {
	Namespace, Name string
	Selector        string // label selector of its pods
}

// Watcher polls the API server and reports progress.
type Watcher struct {
	API      *kube.Client
	Progress io.Writer
	Every    time.Duration // polling interval
}

// Stop deletes ds and waits at most timeout until its pods are gone. Remaining pods are reported to Progress and are
// not an error, because Wait fails for their nodes.
func (w *Watcher) Stop(ctx context.Context, ds DaemonSet, timeout time.Duration) error {
	query := url.Values{"propagationPolicy": {"Background"}}
	var left []pod
	deleted := false
	gone, err := w.until(ctx, timeout, func(ctx context.Context) (done bool, state string, err error) {
		if !deleted {
			if _, err := w.request(ctx, http.MethodDelete, ds.url(w.API, query), nil); err != nil {
				return false, "", fmt.Errorf("delete: %w", err)
			}
			deleted = true
		}
		left, err = w.pods(ctx, ds)
		return err == nil && len(left) == 0, "waiting for the pods on " + nodeList(left), err
	})
	if err != nil {
		return fmt.Errorf("DaemonSet %s: %w", ds, err)
	}
	if !gone {
		escape.Fprintf(w.Progress, "pods of DaemonSet %s are still running after %s on: %s; the clean-up continues on "+
			"the other nodes\n",
			ds, timeout, nodeList(left))
		return nil
	}
	escape.Fprintf(w.Progress, "all pods of DaemonSet %s have stopped\n", ds)
	return nil
}

// ErrNotClean is the error of Wait if a node was not cleaned up in time.
var ErrNotClean = errors.New("not all nodes are clean")

// Wait waits until the pods of cleaner, the DaemonSet that cleans up, are ready on all its nodes, and no pod of stopped
// is left. A pod of stopped can install something just before it stops. settle is the time in which a pod of cleaner
// removes that. Wait waits for it only if it saw a pod of stopped.
func (w *Watcher) Wait(ctx context.Context, cleaner, stopped DaemonSet, timeout, settle time.Duration) error {
	var dirty []string
	late := false
	clean, err := w.until(ctx, timeout, func(ctx context.Context) (bool, string, error) {
		var set daemonSet
		found, err := w.request(ctx, http.MethodGet, cleaner.url(w.API, nil), &set)
		if err != nil {
			return false, "", fmt.Errorf("DaemonSet %s: %w", cleaner, err)
		}
		if !found { // a tool that ignores hook weights can create it later
			return false, "", fmt.Errorf("DaemonSet %s, which cleans up the nodes, does not exist; run helm uninstall "+
				"again", cleaner)
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
			dirty = append(dirty, p.node()+" (pod "+p.Metadata.Name+" is still running)")
		}
		for _, p := range cleaning {
			if why := p.notReady(); why != "" {
				dirty = append(dirty, p.node()+" ("+why+")")
			}
		}
		slices.Sort(dirty)
		s := set.Status
		done := len(dirty) == 0 && s.ObservedGeneration >= set.Metadata.Generation &&
			s.NumberReady >= s.DesiredNumberScheduled && len(cleaning) >= s.DesiredNumberScheduled
		return done, fmt.Sprintf("%d of %d nodes are clean", s.NumberReady, s.DesiredNumberScheduled), nil
	})
	switch {
	case err != nil:
		return err
	case !clean && len(dirty) == 0:
		return fmt.Errorf("%w after %s: DaemonSet %s does not have all its pods; check that kube-controller-manager "+
			"is running",
			ErrNotClean, timeout, cleaner)
	case !clean:
		return escape.Errorf(`%w after %s: %s
All other nodes are clean. Repair these nodes, or run kubectl delete node NAME for a node that no longer exists.
Then run helm uninstall again.
To skip these nodes: helm uninstall --no-hooks`, ErrNotClean, timeout, strings.Join(dirty, ", "))
	}
	if late {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
	}
	escape.Fprintf(w.Progress, "all nodes are clean\n")
	return nil
}

// permanent is an error for which a retry is useless.
type permanent struct{ error }

// until calls check until it is done or the timeout expires, and ends lastCheck later at the latest. Errors of the API
// server are retried. The last one is returned at the timeout.
func (w *Watcher) until(ctx context.Context, timeout time.Duration, check func(context.Context) (
	done bool, state string, err error)) (bool, error) {
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline.Add(lastCheck))
	defer cancel()
	reported := ""
	var failures logonce.Errors
	for {
		done, state, err := check(ctx)
		if errors.As(err, &permanent{}) || done {
			return done, err
		}
		isNew := failures.New(err)
		if err != nil {
			state = "retrying: " + err.Error()
		} else {
			isNew = state != reported
		}
		if isNew {
			escape.Fprintf(w.Progress, "%s\n", state)
			reported = state
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

// request makes one request. A missing object is found == false. If into is nil, the response is ignored. Status 403
// and 404 are verdicts of the API server: package kube returns another error if they can be a failure of it.
func (w *Watcher) request(ctx context.Context, method, url string, into any) (found bool, err error) {
	err = w.API.Call(ctx, method, url, nil, into)
	switch kube.Code(err) {
	case http.StatusNotFound:
		return false, nil
	case http.StatusForbidden:
		return false, permanent{fmt.Errorf("%w; the hook lacks a permission: restore the release's Role and "+
			"RoleBinding", err)}
	}
	return err == nil, err
}

func (w *Watcher) pods(ctx context.Context, ds DaemonSet) ([]pod, error) {
	var list struct {
		Items []pod `json:"items"`
	}
	query := url.Values{"labelSelector": {ds.Selector}}
	at := w.API.URL(query, "api", "v1", "namespaces", ds.Namespace, "pods")
	if _, err := w.request(ctx, http.MethodGet, at, &list); err != nil {
		return nil, fmt.Errorf("pods of DaemonSet %s: %w", ds, err)
	}
	return list.Items, nil
}

func (ds DaemonSet) url(api *kube.Client, query url.Values) string {
	return api.URL(query, "apis", "apps", "v1", "namespaces", ds.Namespace, "daemonsets", ds.Name)
}

func (ds DaemonSet) String() string { return ds.Namespace + "/" + ds.Name }
