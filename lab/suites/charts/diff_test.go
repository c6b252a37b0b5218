package charts

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
)

// difference returns the changes from one rendering to another, object by object. Hunks have no line numbers and no
// context lines, so that a changed template usually changes only the recorded defaults. The header of a hunk consists
// of the parent lines. Header and first line together identify the position in the object.
func difference(from, to string) string {
	before, after := split(from), split(to)
	pair := pairs(before, after)
	last := -1
	var b strings.Builder
	for i, o := range after {
		where := "at the beginning"
		if i > 0 {
			where = "after " + after[i-1].String()
		}
		j := pair[i]
		if j < 0 {
			fmt.Fprintf(&b, "=== %s: added %s\n", o, where)
			writeLines(&b, "+", o.lines)
			continue
		}
		if j < last {
			fmt.Fprintf(&b, "=== %s: moved %s\n", before[j], where)
		}
		last = max(last, j)
		if hunks := before[j].hunks(o); hunks != "" {
			fmt.Fprintf(&b, "=== %s\n%s", before[j], hunks)
		}
	}
	for j, o := range before {
		if !slices.Contains(pair, j) {
			fmt.Fprintf(&b, "=== %s: removed\n", o)
		}
	}
	if b.Len() == 0 {
		return "no difference\n"
	}
	return b.String()
}

// object is the text of an object, or the notes, which have no name.
type object struct {
	kind, name string
	lines      []string
}

var kindAndName = regexp.MustCompile(`(?ms)^kind: ([^\n]*).*?^  name: "?([^"\n]*)`)

func split(text string) (objects []object) {
	for document := range strings.SplitSeq(strings.TrimPrefix(text, "---\n"), "\n---\n") {
		o := object{kind: "notes", lines: strings.Split(strings.TrimSuffix(document, "\n"), "\n")}
		if found := kindAndName.FindStringSubmatch(document); found != nil {
			o.kind, o.name = found[1], found[2]
		}
		objects = append(objects, o)
	}
	return objects
}

func (o object) String() string { return strings.TrimSpace(o.kind + " " + o.name) }

// pairs returns for each object after the change the index of the object before it, or -1. First it pairs objects with
// the same kind and name, then the remaining objects with the same kind and template, in their order. The first line
// contains the file of the template.
func pairs(before, after []object) []int {
	pair := make([]int, len(after))
	taken := map[int]bool{}
	for i := range pair {
		pair[i] = -1
	}
	for _, same := range []func(a, b object) bool{
		func(a, b object) bool { return a.kind == b.kind && a.name == b.name },
		func(a, b object) bool { return a.kind == b.kind && a.lines[0] == b.lines[0] },
	} {
		for i, o := range after {
			for j := range before {
				if pair[i] < 0 && !taken[j] && same(before[j], o) {
					pair[i], taken[j] = j, true
				}
			}
		}
	}
	return pair
}

// hunks returns the changes from one object to another.
func (o object) hunks(to object) string {
	var b strings.Builder
	for _, c := range difflib.NewMatcherWithJunk(o.lines, to.lines, false, nil).GetOpCodes() {
		if c.Tag == 'e' {
			continue
		}
		first := c.I1
		if c.Tag == 'i' {
			first = max(c.I1-1, 0) // the line before the new lines
		}
		fmt.Fprintln(&b, strings.TrimSpace("@@ "+o.address(first)))
		if c.Tag == 'i' && c.I1 > 0 {
			writeLines(&b, " ", o.lines[first:c.I1])
		}
		writeLines(&b, "-", o.lines[c.I1:c.I2])
		writeLines(&b, "+", to.lines[c.J1:c.J2])
	}
	return b.String()
}

// address returns the parents of a line, and a number if the parents have several such lines.
func (o object) address(line int) string {
	number := 1
	for i := range line {
		if o.lines[i] == o.lines[line] && o.parents(i) == o.parents(line) {
			number++
		}
	}
	if number > 1 {
		return fmt.Sprintf("%s (occurrence %d)", o.parents(line), number)
	}
	return o.parents(line)
}

func (o object) parents(line int) string {
	if o.name == "" {
		return ""
	}
	var all []string
	depth := indent(o.lines[line])
	for i := line - 1; i >= 0; i-- {
		if text := strings.TrimSpace(o.lines[i]); text != "" && text[0] != '#' && indent(o.lines[i]) < depth {
			depth = indent(o.lines[i])
			all = append(all, text)
		}
	}
	slices.Reverse(all)
	return strings.Join(all, " ")
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

func writeLines(b *strings.Builder, prefix string, lines []string) {
	for _, line := range lines {
		b.WriteString(prefix + line + "\n")
	}
}
