package scale

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// Request is an API request.
type Request struct {
	User, Pod, Node string // Pod and Node are from the token
	Verb, Resource  string
	Namespace, Name string
	Code            int
	At              time.Time // when the API server received it
}

func (r Request) String() string {
	return fmt.Sprintf("%s (pod %s, node %s): %s %s %s/%s: %d",
		r.User, r.Pod, r.Node, r.Verb, r.Resource, r.Namespace, r.Name, r.Code)
}

// Breakdown counts requests by verb, resource and status.
func Breakdown(requests []Request) string {
	counts := map[string]int{}
	for _, r := range requests {
		counts[fmt.Sprintf("%s %s (%d)", r.Verb, r.Resource, r.Code)]++
	}
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[what], what))
	}
	return cmp.Or(strings.Join(parts, ", "), "nothing")
}

// readAudit returns the requests of users with this name prefix. The log contains only completed requests, and watches.
func readAudit(file, prefix string) ([]Request, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Request
	seen := map[string]bool{} // a watch has two entries, for its start and its end
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			AuditID, RequestURI, Verb string
			User                      struct {
				Username string
				Extra    map[string][]string
			}
			ObjectRef                struct{ Resource, Subresource, Namespace, Name string }
			ResponseStatus           struct{ Code int }
			RequestReceivedTimestamp time.Time
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !strings.HasPrefix(e.User.Username, prefix) || seen[e.AuditID] {
			continue
		}
		seen[e.AuditID] = true
		r := Request{
			User:      strings.TrimPrefix(e.User.Username, prefix),
			Verb:      e.Verb,
			Resource:  e.ObjectRef.Resource,
			Pod:       strings.Join(e.User.Extra["authentication.kubernetes.io/pod-name"], ","),
			Node:      strings.Join(e.User.Extra["authentication.kubernetes.io/node-name"], ","),
			Namespace: e.ObjectRef.Namespace,
			Name:      e.ObjectRef.Name,
			Code:      e.ResponseStatus.Code,
			At:        e.RequestReceivedTimestamp,
		}
		if e.ObjectRef.Subresource != "" {
			r.Resource += "/" + e.ObjectRef.Subresource
		}
		if r.Resource == "" {
			r.Resource = e.RequestURI // such as /version
		}
		all = append(all, r)
	}
	return all, lines.Err()
}

// between returns the requests that the API server received between two times.
func between(all []Request, from, until time.Time) []Request {
	var some []Request
	for _, r := range all {
		if !r.At.Before(from) && r.At.Before(until) {
			some = append(some, r)
		}
	}
	return some
}
