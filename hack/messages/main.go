// Command messages makes from the table of causes what the build and the documentation need of it: the DLL's message
// table and version resource, and the table of docs/errors.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

func main() {
	markdown := flag.Bool("markdown", false, "print the table for docs/errors.md and do nothing else")
	dir := flag.String("dir", ".", "where to write messages.mc, for windmc, and plugin.rc, for windres")
	version := flag.String("version", "", "version of the DLL, such as v1.2.3")
	flag.Parse()
	if *markdown {
		fmt.Print(table(cause.All))
		return
	}
	files := map[string]string{
		"messages.mc": messageFile(cause.All),
		"plugin.rc":   resourceScript(*version),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(*dir, name), []byte(text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "messages:", err)
			os.Exit(1)
		}
	}
}

// messageFile returns the source of the message table (Microsoft, "Message Text Files"). Facility 0 gives the
// identifiers that cause.MessageID computes. Inserts: %1 is the plugin input, %2 the detail.
func messageFile(causes []*cause.Cause) string {
	var b strings.Builder
	b.WriteString("MessageIdTypedef=DWORD\nSeverityNames=(Success=0x0 Informational=0x1 Warning=0x2 " +
		"Error=0x3)\nFacilityNames=(CCGRKC=0x0)\nLanguageNames=(English=0x409:MSG00409)\n\n")
	for _, c := range causes {
		fmt.Fprintf(&b, "MessageId=0x%X\nSeverity=%s\nFacility=CCGRKC\nSymbolicName=%s\nLanguage=English\n%s\n",
			c.Event, c.Severity, symbol(c), c.Text)
		if c.HResult != 0 {
			fmt.Fprintf(&b, "Plugin input: %%1\nDetail: %%2\nWhat to do: %s\nReturned to ccg.exe: 0x%08X (%s)\n.\n\n",
				c.Remedy, c.HResult, c.Name)
		} else {
			b.WriteString("Detail: %2\n.\n\n")
		}
	}
	return b.String()
}

func symbol(c *cause.Cause) string {
	return "CCGRKC_" + strings.ToUpper(strings.ReplaceAll(c.Name, "-", "_"))
}

// table returns the causes in Markdown.
func table(causes []*cause.Cause) string {
	var b strings.Builder
	b.WriteString("| HRESULT | event | name | what happened | what to do | retried within the call |\n" +
		"|---|---|---|---|---|---|\n")
	for _, c := range causes {
		hresult, retry := "none", "no"
		if c.HResult != 0 {
			hresult = fmt.Sprintf("`0x%08X`", c.HResult)
		}
		if c.Retry {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s |\n", hresult, c.Event, c.Name, cell(c.Text), cell(c.Remedy),
			retry)
	}
	return b.String()
}

// cell keeps a text in its cell: <name> would be taken for HTML.
func cell(s string) string {
	return strings.NewReplacer("<", "&lt;", ">", "&gt;", "|", `\|`, "*", `\*`).Replace(s)
}

var numbers = regexp.MustCompile(`^v?(\d+)\.(\d+)\.(\d+)`)

// resourceScript returns the resources of the DLL: the message table and the version. A version that has no numbers is
// 0.0.0 to programs and itself to people.
func resourceScript(version string) string {
	if version == "" {
		version = "(devel)"
	}
	fixed := "0,0,0,0"
	if n := numbers.FindStringSubmatch(version); n != nil {
		fixed = strings.Join(append(n[1:], "0"), ",")
	}
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `""`).Replace(version)
	return fmt.Sprintf(`#include <winver.h>
#include "messages.rc"

VS_VERSION_INFO VERSIONINFO
FILEVERSION %[1]s
PRODUCTVERSION %[1]s
FILEFLAGSMASK VS_FFI_FILEFLAGSMASK
FILEOS VOS_NT_WINDOWS32
FILETYPE VFT_DLL
BEGIN
  BLOCK "StringFileInfo"
  BEGIN
    BLOCK "040904B0"
    BEGIN
      VALUE "CompanyName", "CCGRKC"
      VALUE "FileDescription", "Kubernetes-native Container Credential Guard plugin"
      VALUE "FileVersion", "%[2]s"
      VALUE "InternalName", "ccg-plugin"
      VALUE "LegalCopyright", "Apache License 2.0"
      VALUE "OriginalFilename", "ccg-plugin.dll"
      VALUE "ProductName", "CCGRKC"
      VALUE "ProductVersion", "%[2]s"
    END
  END
  BLOCK "VarFileInfo"
  BEGIN
    VALUE "Translation", 0x409, 1200
  END
END
`, fixed, quoted)
}
