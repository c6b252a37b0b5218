package credspec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"

	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// Document is one credential spec of a file.
type Document struct {
	Name     string // metadata.name; "" for a plain spec
	Spec     Spec
	Problems []Problem

	at *reader // has the user's spelling of the fields
}

// Path returns the path of a field of the Spec, such as DomainJoinConfig.Sid, in the user's spelling.
func (d Document) Path(field string) string {
	if d.at == nil {
		return field
	}
	return d.at.pathOf(field)
}

// Read reads credential specs from JSON or YAML: one or more GMSACredentialSpecs, also in a List, or the plain form. It
// returns an error only if the content is neither JSON nor YAML. Each other error is a problem of its document. Read
// still uses a value whose meaning is clear, such as one with a key in the wrong case or of the wrong type.
//
// Read ignores objects of other kinds if there is at least one credential spec. If a document has more than 100
// problems, or if there are more than 100 objects that are not credential specs, it returns the first 100 and a note
// that there are more.
func Read(content []byte) ([]Document, error) {
	trees, err := parse(content)
	if err != nil {
		return nil, err
	}
	var specs, others []Document
	for _, t := range trees {
		for _, item := range items(t.value) {
			d, other := read(item)
			for _, key := range t.repeated {
				if len(d.Problems) > maxProblems {
					break
				}
				d.Problems = append(d.Problems, Problem{
					Field:  key,
					Text:   "occurs twice in the same object",
					Remedy: "remove one of them; programs differ in which one they use",
				})
			}
			switch {
			case !other:
				specs = append(specs, d)
			case len(others) < maxProblems:
				others = append(others, d)
			case len(others) == maxProblems:
				text := fmt.Sprintf("there are more objects than these %d that are not credential specs", maxProblems)
				others = append(others, Document{Problems: []Problem{{Text: text}}})
			}
		}
	}
	if len(specs) > 0 {
		return specs, nil
	}
	if len(others) > 0 {
		return others, nil
	}
	return nil, errors.New("there is no credential spec: the file is empty")
}

type tree struct {
	value    any      // decoded by encoding/json, with json.Number
	repeated []string // keys that occur twice in one map
}

var repeatedKey = regexp.MustCompile(`key "([^"]*)" already set in map`)

func parse(content []byte) ([]tree, error) {
	text := decodeText(content)
	// JSON is parsed as JSON if possible: tabs and some escapes are not valid in YAML.
	if trees, ok := parseJSON(text); ok {
		return trees, nil
	}
	var trees []tree
	for i, doc := range documents(text) {
		j, err := yaml.YAMLToJSON(doc)
		if err != nil {
			return nil, fmt.Errorf("document %d is neither JSON nor YAML: %w", i+1, err)
		}
		v, err := decode(json.NewDecoder(bytes.NewReader(j)))
		if err != nil {
			return nil, fmt.Errorf("document %d is neither JSON nor YAML: %w", i+1, err)
		}
		if v != nil {
			trees = append(trees, tree{v, repeated(doc)})
		}
	}
	return trees, nil
}

func parseJSON(text []byte) ([]tree, bool) {
	if t := bytes.TrimSpace(text); len(t) == 0 || t[0] != '{' {
		return nil, false
	}
	var trees []tree
	d := json.NewDecoder(bytes.NewReader(text))
	for {
		start := d.InputOffset()
		v, err := decode(d)
		if err == io.EOF {
			return trees, true
		}
		if err != nil {
			return nil, false
		}
		trees = append(trees, tree{v, repeated(text[start:d.InputOffset()])})
	}
}

func decode(d *json.Decoder) (any, error) {
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// repeated returns the first repeated key: the strict parser stops there.
func repeated(doc []byte) []string {
	if _, err := yaml.YAMLToJSONStrict(doc); err != nil {
		if m := repeatedKey.FindStringSubmatch(err.Error()); m != nil {
			return m[1:]
		}
	}
	return nil
}

// decodeText returns UTF-8 without a byte order mark. Windows PowerShell's Out-File writes UTF-16.
func decodeText(content []byte) []byte {
	bigEndian := bytes.HasPrefix(content, []byte{0xFE, 0xFF})
	if !bigEndian && !bytes.HasPrefix(content, []byte{0xFF, 0xFE}) {
		return bytes.TrimPrefix(content, []byte("\uFEFF"))
	}
	units := make([]uint16, 0, len(content)/2)
	for i := 2; i+1 < len(content); i += 2 {
		low, high := content[i], content[i+1]
		if bigEndian {
			low, high = high, low
		}
		units = append(units, uint16(low)|uint16(high)<<8)
	}
	return []byte(string(utf16.Decode(units)))
}

// documents splits YAML at its document markers. Each line that begins with --- is a marker, even in a block scalar.
func documents(text []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("---"))
		if ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n")) {
			docs = append(docs, doc)
			doc = slices.Clone(rest)
			continue
		}
		doc = append(doc, line...)
	}
	return append(docs, doc)
}

// items returns the items of a List, or the object itself.
func items(v any) []any {
	m, ok := v.(map[string]any)
	if !ok {
		return []any{v}
	}
	kind, _ := m["kind"].(string)
	list, ok := m["items"].([]any)
	if !ok || !strings.HasSuffix(kind, "List") {
		return []any{v}
	}
	return list
}

// The keys of each map of a Spec, by the map's path; "" is the top level.
var specKeys = map[string][]string{
	"":            {"CmsPlugins", "DomainJoinConfig", "ActiveDirectoryConfig"},
	fieldDomain:   {"Sid", "MachineAccountName", "Guid", "DnsTreeName", "DnsName", "NetBiosName"},
	fieldAD:       {"GroupManagedServiceAccounts", "HostAccountConfig"},
	fieldAccounts: {"Name", "Scope"},
	fieldHost:     {"PortableCcgVersion", "PluginGUID", "PluginInput"},
}

var objectKeys = []string{"apiVersion", "kind", "metadata", "credspec"}

// read reads one object and reports whether the object is of another kind.
func read(v any) (Document, bool) {
	r := &reader{written: map[string]string{}, reported: map[string]bool{}}
	m, ok := v.(map[string]any)
	if !ok {
		r.fail("", "use a GMSACredentialSpec or a plain credential spec in JSON",
			"is %s, not a credential spec", typeOf(v))
		return Document{Problems: r.problems}, true
	}
	_, hasAPIVersion := m["apiVersion"]
	_, hasKind := m["kind"]
	_, hasBody := find(m, "credspec")
	if !hasAPIVersion && !hasKind && !hasBody {
		if !looksLikeSpec(m) {
			r.fail("", "use a GMSACredentialSpec or a plain credential spec in JSON",
				"has neither CmsPlugins nor DomainJoinConfig nor ActiveDirectoryConfig, so it is not a credential spec")
			return Document{Problems: r.problems}, true
		}
		return Document{Spec: r.spec(m), Problems: r.problems, at: r}, false
	}
	return r.object(m, hasBody)
}

func looksLikeSpec(m map[string]any) bool {
	return slices.ContainsFunc(specKeys[""], func(key string) bool { _, ok := find(m, key); return ok })
}

type reader struct {
	checker
	prefix   string            // path of the Spec in the document, with a trailing dot, or ""
	written  map[string]string // path of a field in the Spec -> path in the user's spelling, if different
	reported map[string]bool   // fields of the Spec with a reported problem
}

func (r *reader) object(m map[string]any, hasBody bool) (Document, bool) {
	var d Document
	apiVersion, _ := m["apiVersion"].(string)
	kind, _ := m["kind"].(string)
	group, _, _ := strings.Cut(apiVersion, "/")
	if !hasBody && group != "windows.k8s.io" && !strings.EqualFold(kind, Kind) {
		if inner, ok := m["spec"].(map[string]any); !ok || !looksLikeSpec(inner) {
			r.fail("kind", "specify a file with a GMSACredentialSpec or a plain credential spec",
				"is %q, not %s", kind, Kind)
			return Document{Problems: r.problems}, true
		}
	}
	switch {
	case apiVersion == APIVersion:
	case apiVersion == "":
		r.fail("apiVersion", "write "+APIVersion, "is missing or empty")
	case strings.HasPrefix(apiVersion, "windows.k8s.io/v1alpha"):
		r.fail("apiVersion", "write "+APIVersion,
			"is %q, an early version that current clusters do not support", apiVersion)
	default:
		r.fail("apiVersion", "write "+APIVersion, "is %q", apiVersion)
	}
	if kind != Kind {
		r.fail("kind", "write "+Kind, "is %q", kind)
	}
	d.Name = r.metadata(m["metadata"])

	top := r.keys("", m, objectKeys, func(key string) string {
		if key == "spec" {
			return "write credspec instead of spec"
		}
		if at, ok := sectionOf(key); ok {
			return "move it to credspec" + dotted(at)
		}
		return ""
	})
	body, ok := top["credspec"]
	if !ok && m["spec"] != nil {
		body, ok = entry{"spec", m["spec"]}, true
	}
	if !ok || body.value == nil {
		r.fail("credspec",
			"write the credential spec under it, with CmsPlugins, DomainJoinConfig and ActiveDirectoryConfig",
			"is missing or empty")
		d.Problems = r.problems
		return d, false
	}
	r.prefix = body.path + "."
	inner, ok := body.value.(map[string]any)
	if !ok {
		// Users paste the spec as a string, because the container runtime gets it as a string.
		r.fail(body.path, "write the credential spec as YAML or JSON, not as a string", "is %s", typeOf(body.value))
		d.Problems = r.problems
		return d, false
	}
	d.Spec = r.spec(inner)
	d.Problems, d.at = r.problems, r
	return d, false
}

func (r *reader) metadata(v any) string {
	m, _ := v.(map[string]any)
	name, ok := m["name"].(string)
	switch {
	case m["name"] != nil && !ok:
		r.fail("metadata.name", "write it in quotes", "is %s", typeOf(m["name"]))
		name = scalar(m["name"])
	case name == "":
		r.fail("metadata.name",
			"set the name of the GMSACredentialSpec: pods reference it in windowsOptions.gmsaCredentialSpecName",
			"is missing or empty")
	default:
		// A Secret's name and this one have the same form: RFC 1123 subdomain.
		if err := credential.ValidateName(name); err != nil {
			r.fail("metadata.name", "use only lower-case letters, digits, hyphens and dots",
				"is %q, which is not a valid Kubernetes name", name)
		}
	}
	if m["namespace"] != nil {
		r.warn("metadata.namespace", "remove it", "is set, but a GMSACredentialSpec is cluster-scoped")
	}
	return name
}

// spec reads the Spec and checks it.
func (r *reader) spec(m map[string]any) Spec {
	var s Spec
	top := r.specMap("", "", m)
	s.CmsPlugins = r.texts(fieldPlugins, top["CmsPlugins"])

	d := r.section(fieldDomain, top["DomainJoinConfig"])
	s.DomainJoinConfig = DomainJoinConfig{
		Sid:                r.text(fieldSID, d["Sid"]),
		MachineAccountName: r.text(fieldMachine, d["MachineAccountName"]),
		Guid:               r.text(fieldGUID, d["Guid"]),
		DnsTreeName:        r.text(fieldTree, d["DnsTreeName"]),
		DnsName:            r.text(fieldDNS, d["DnsName"]),
		NetBiosName:        r.text(fieldNetBIOS, d["NetBiosName"]),
	}

	ad := r.section(fieldAD, top["ActiveDirectoryConfig"])
	s.ActiveDirectoryConfig.GroupManagedServiceAccounts = r.accountList(ad["GroupManagedServiceAccounts"])
	host := ad["HostAccountConfig"]
	if misplaced, ok := m["HostAccountConfig"]; ok && host.value == nil {
		host = entry{r.prefix + "HostAccountConfig", misplaced}
		r.setPath(fieldHost, host.path)
	}
	if host.value != nil {
		h := r.section(fieldHost, host)
		s.ActiveDirectoryConfig.HostAccountConfig = &HostAccountConfig{
			PortableCcgVersion: r.text(fieldCcgVersion, h["PortableCcgVersion"]),
			PluginGUID:         r.text(fieldPluginGUID, h["PluginGUID"]),
			PluginInput:        r.text(fieldPluginInput, h["PluginInput"]),
		}
	}
	for _, p := range s.Check() {
		// A number instead of a string is reported once, with the appropriate remedy.
		if r.isReported(p.Field) {
			continue
		}
		if p.Field != "" {
			p.Field = r.pathOf(p.Field)
		}
		r.add(p)
	}
	return s
}

func (r *reader) accountList(e entry) []Account {
	if e.value == nil {
		return nil
	}
	list, ok := e.value.([]any)
	if !ok {
		// One gMSA that is not in a list.
		if _, isMap := e.value.(map[string]any); !isMap {
			r.mistyped(fieldAccounts, e, "write a list of {Name: …, Scope: …}")
			return nil
		}
		r.fail(e.path, "write a list, even for one entry", "is %s", typeOf(e.value))
		list = []any{e.value}
	}
	var accounts []Account
	for i, v := range list {
		field := fmt.Sprintf("%s[%d]", fieldAccounts, i)
		if r.isFull() {
			break
		}
		path := fmt.Sprintf("%s[%d]", e.path, i)
		r.setPath(field, path)
		m, ok := v.(map[string]any)
		if !ok {
			r.fail(path, "write {Name: …, Scope: …}", "is %s", typeOf(v))
			continue
		}
		keys := r.specMap(fieldAccounts, field, m)
		accounts = append(accounts, Account{
			Name:  r.text(field+".Name", keys["Name"]),
			Scope: r.text(field+".Scope", keys["Scope"]),
		})
	}
	return accounts
}

type entry struct {
	path  string // in the user's spelling
	value any
}

// section reads the map at a field of the Spec.
func (r *reader) section(field string, e entry) map[string]entry {
	if e.value == nil {
		return nil
	}
	m, ok := e.value.(map[string]any)
	if !ok {
		r.mistyped(field, e, "write "+strings.Join(specKeys[field], ", ")+" under it")
		return nil
	}
	return r.specMap(field, field, m)
}

// specMap reads the keys of a map of the Spec; kind is its path in specKeys, field its path in the Spec.
func (r *reader) specMap(kind, field string, m map[string]any) map[string]entry {
	path := strings.TrimSuffix(r.prefix, ".")
	if field != "" {
		path = r.pathOf(field)
	}
	found := r.keys(path, m, specKeys[kind], func(key string) string {
		if at, ok := sectionOf(key); ok && at != kind {
			target := cmp.Or(strings.TrimSuffix(r.prefix, ".")+dotted(at), "the top level")
			return "move it to " + strings.TrimPrefix(target, ".")
		}
		return ""
	})
	for key, e := range found {
		r.setPath(join(field, key), e.path)
	}
	return found
}

// keys finds the known keys of a map, ignoring case. It reports keys with the wrong case and unknown keys.
func (r *reader) keys(path string, m map[string]any, known []string, remedy func(key string) string) map[string]entry {
	found := map[string]entry{}
	for _, written := range slices.Sorted(maps.Keys(m)) {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, written) })
		at := join(path, written)
		switch {
		case i < 0:
			r.fail(at, cmp.Or(remedy(written), "remove it, or write one of "+strings.Join(known, ", ")),
				"is unknown here")
		case written == known[i]:
			found[known[i]] = entry{at, m[written]}
		default:
			r.fail(at, "write "+known[i], "has the wrong case and is ignored")
			if _, exact := m[known[i]]; !exact {
				found[known[i]] = entry{at, m[written]}
			}
		}
	}
	return found
}

// sectionOf returns the path of the map that a key of a Spec belongs to.
func sectionOf(key string) (string, bool) {
	for _, at := range []string{"", fieldDomain, fieldAD, fieldHost} {
		if slices.ContainsFunc(specKeys[at], func(k string) bool { return strings.EqualFold(k, key) }) {
			return at, true
		}
	}
	return "", false
}

func (r *reader) texts(field string, e entry) []string {
	switch v := e.value.(type) {
	case nil:
		return nil
	case []any:
		var list []string
		for i, item := range v {
			if r.isFull() {
				break
			}
			f := fmt.Sprintf("%s[%d]", field, i)
			path := fmt.Sprintf("%s[%d]", e.path, i)
			r.setPath(f, path)
			list = append(list, r.text(f, entry{path, item}))
		}
		return list
	case string:
		r.fail(e.path, "write a list, even for one entry", "is a string")
		return []string{v}
	default:
		r.mistyped(field, e, "write a list")
		return nil
	}
}

// text returns a string, or the text form of a number or Boolean.
func (r *reader) text(field string, e entry) string {
	switch v := e.value.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number, bool:
		r.mistyped(field, e, `write it in quotes`+map[bool]string{true: `, "1"`}[field == fieldCcgVersion])
		return scalar(v)
	default:
		r.mistyped(field, e,
			"write a string"+map[bool]string{true: ", " + credential.InputForm}[field == fieldPluginInput])
		return ""
	}
}

func (r *reader) mistyped(field string, e entry, remedy string) {
	r.reported[field] = true
	r.fail(e.path, remedy, "is %s", typeOf(e.value))
}

// isReported reports whether the field, or a section that contains it, has a reported problem.
func (r *reader) isReported(field string) bool {
	for {
		if r.reported[field] {
			return true
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			return false
		}
		field = field[:i]
	}
}

// pathOf returns the path of a field in the user's spelling. For a missing field, it is the correct path.
func (r *reader) pathOf(field string) string {
	if w, ok := r.written[field]; ok {
		return w
	}
	if i := strings.LastIndexAny(field, ".["); i >= 0 {
		return r.pathOf(field[:i]) + field[i:]
	}
	return r.prefix + field
}

// setPath stores the user's spelling of a path, unless pathOf returns it anyway. Lists can be long, so this limits the
// map.
func (r *reader) setPath(field, path string) {
	if r.pathOf(field) != path {
		r.written[field] = path
	}
}

func find(m map[string]any, key string) (any, bool) {
	for k, v := range m {
		if strings.EqualFold(k, key) {
			return v, true
		}
	}
	return nil, false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func dotted(path string) string {
	if path == "" {
		return ""
	}
	return "." + path
}

func scalar(v any) string {
	switch v := v.(type) {
	case json.Number:
		return v.String()
	case bool:
		return fmt.Sprint(v)
	}
	return ""
}

func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "empty"
	case string:
		return "a string"
	case json.Number:
		return "the number " + v.String()
	case bool:
		return fmt.Sprintf("the Boolean %t", v)
	case []any:
		return "a list"
	default:
		return "a map"
	}
}
