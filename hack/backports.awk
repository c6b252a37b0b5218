# Prints an apt source for <codename>-backports, derived from the first source of <codename> in the input: the same archive and
# the same key. Prints nothing if there is none. Input: files of both formats of sources.list(5).
#   awk -v codename=bookworm -f hack/backports.awk /etc/apt/sources.list /etc/apt/sources.list.d/*
# The first line is the format: "# sources" (deb822) or "# list".

function done(form, text) { print "# " form; print text; found = 1; exit }

# A stanza of deb822 is evaluated at its end.
function stanza(    i, n, words, text) {
	if (types ~ /(^|[ \t])deb([ \t]|$)/ && uris != "" && enabled !~ /^[ \t]*(no|false|0)[ \t]*$/) {
		n = split(suites, words, /[ \t]+/)
		for (i = 1; i <= n; i++)
			if (words[i] == codename) {
				text = "Types: deb\nURIs:" uris "\nSuites: " codename "-backports\nComponents: main"
				if (key != "") text = text "\nSigned-By:" key
				done("sources", text)
			}
	}
	types = uris = suites = key = enabled = field = ""
}

FNR == 1 && NR > 1 { stanza() }
{ sub(/\r$/, "") }
/^#/ { next }
/^[ \t]*$/ { stanza(); next }

# One line: deb [options] archive suite components
/^deb[ \t]/ {
	line = $0; options = ""
	sub(/^deb[ \t]+/, "", line)
	sub(/[ \t]+#.*$/, "", line)
	if (match(line, /^\[[^]]*\][ \t]+/)) { options = substr(line, 1, RLENGTH); line = substr(line, RLENGTH + 1) }
	split(line, part, /[ \t]+/)
	if (part[2] == codename) done("list", "deb " options part[1] " " codename "-backports main")
	next
}

# In deb822, a line that starts with white space continues the field, which can be a key.
/^[ \t]/ {
	if (field == "signed-by") key = key "\n" $0
	if (field == "uris") uris = uris " " $0
	if (field == "suites") suites = suites " " $0
	if (field == "types") types = types " " $0
	next
}
{
	colon = index($0, ":"); field = tolower(substr($0, 1, colon - 1)); value = substr($0, colon + 1)
	if (field == "types") types = value
	if (field == "uris") uris = value
	if (field == "suites") suites = value
	if (field == "signed-by") key = value
	if (field == "enabled") enabled = value
}
END { if (!found) stanza() }
