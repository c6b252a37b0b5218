// Command ccg-plugin-installer installs the CCG plugin on a Windows host, repairs its registration, verifies it with a
// self-test, and uninstalls it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/dccheck"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/installer"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {
	// Windows stops a container with CTRL_SHUTDOWN_EVENT, which Go delivers as SIGTERM.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		escape.Fprintf(os.Stderr, "ccg-plugin-installer: %v\n", err)
		os.Exit(installer.ExitFailed)
	}
}

// exitCode is an error that has already been printed.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func command() *cobra.Command {
	var logs logging.Flags
	config := func() (installer.Config, error) {
		log, err := logs.Logger(os.Stderr)
		if err != nil {
			return installer.Config{}, err
		}
		return installer.DefaultConfig(log)
	}
	root := &cobra.Command{
		Use:   "ccg-plugin-installer",
		Short: "Install the CCG plugin on this Windows host and repair its registration",
		Long: `Installs the Container Credential Guard plugin, class ` + installer.CLSID + `, on this Windows host.

It creates:
  C:\Program Files\CCGRKC\ccg-plugin-<hash>.dll                        the plugin, which this program contains
  HKLM\SOFTWARE\Classes\CLSID\{...}, AppID\{...}                       its registration with COM
  HKLM\SYSTEM\CurrentControlSet\Control\CCG\COMClasses\{...}           its registration with CCG
  HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\CCGRKC   its event source

Run it as SYSTEM, as the HostProcess DaemonSet of the chart rancher-gmsa-plugin-installer does: every install runs a
self-test, and only SYSTEM and services can activate the class. You can repeat every command. If a command is killed,
the next install or uninstall repairs the host.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	logs.Add(root.PersistentFlags())
	root.AddCommand(installCommand(config), uninstallCommand(config), statusCommand(config), runCommand(config),
		checkDomainCommand(),
		versionCommand())
	return root
}

type configFunc func() (installer.Config, error)

// installFlags adds the flags that determine the registration, which status needs too.
func installFlags(cmd *cobra.Command, runAs *string) {
	cmd.Flags().StringVar(runAs, "run-as", string(installer.NetworkService),
		"plugin identity: network-service, local-service or launching-user (the account that activates the class)")
}

func replaceFlag(cmd *cobra.Command, replace *bool) {
	cmd.Flags().BoolVar(replace, "replace-foreign", false, `replace another product's registration of the same
class, such as that of Rancher's C# plugin; without this flag, the command fails if there is one`)
}

// withDLL completes the configuration of all commands except uninstall, which needs no DLL.
func withDLL(config configFunc, runAs string, replace bool) (installer.Config, error) {
	c, err := config()
	if err != nil {
		return c, err
	}
	c.RunAs, c.ReplaceForeign = installer.RunAs(runAs), replace
	c.DLL, err = installer.EmbeddedDLL()
	return c, err
}

func installCommand(config configFunc) *cobra.Command {
	var runAs string
	var replace bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install or upgrade the plugin and run the self-test",
		Long: `Installs or upgrades the plugin and runs the self-test: it activates the class in another process, as
ccg.exe does, and the response must come from the installed DLL. After an upgrade, it waits up to 30 s until a
surrogate with the previous version exits. If the installation is ok, it changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := withDLL(config, runAs, replace)
			if err != nil {
				return err
			}
			if err := installer.Install(cmd.Context(), &c); err != nil {
				return err
			}
			escape.Fprintf(cmd.OutOrStdout(), "installed; the self-test passed\n")
			return nil
		},
	}
	installFlags(cmd, &runAs)
	replaceFlag(cmd, &replace)
	return cmd
}

func uninstallCommand(config configFunc) *cobra.Command {
	var keepRunning bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything that install creates",
		Long: `Removes every registry key and file that install creates, and verifies the removal. If a surrogate has
loaded the DLL, it waits up to 30 s until the surrogate exits. A DLL that is still loaded then is renamed, and deleted
when the host restarts or by the next uninstall; the command logs that. A foreign registration of the same class remains
unchanged.

With --keep-running, the command continues to check the host until it is stopped, and uninstalls again if necessary: an
installer that is about to stop can install again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config()
			if err != nil {
				return err
			}
			if err := installer.Uninstall(cmd.Context(), &c); err != nil {
				return err
			}
			escape.Fprintf(cmd.OutOrStdout(), "uninstalled\n")
			for keepRunning && pause(cmd.Context(), uninstallInterval) {
				if err := installer.Uninstall(cmd.Context(), &c); err != nil && cmd.Context().Err() == nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&keepRunning, "keep-running", false,
		"do not exit after the uninstall, and repeat it if necessary")
	return cmd
}

// uninstallInterval is how often uninstall --keep-running checks the host. uninstall-hook waits longer than that.
const uninstallInterval = 5 * time.Second

// pause returns false when ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func statusCommand(config configFunc) *cobra.Command {
	var runAs, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Compare the installation with what this version installs",
		Long: `Compares every registry value and file with what this version installs, and changes nothing. If all are
ok, it runs the self-test.

Exit codes:
  0  installed and healthy
  1  the host could not be checked
  3  not installed
  4  drift: something differs or is missing, a change was interrupted, the registration is foreign, or the self-test
     failed`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: must be text or json", output)
			}
			c, err := withDLL(config, runAs, false)
			if err != nil {
				return err
			}
			report, err := installer.Status(cmd.Context(), &c)
			if err != nil {
				return err
			}
			if err := writeReport(cmd.OutOrStdout(), report, output); err != nil {
				return err
			}
			if code := report.ExitCode(); code != installer.ExitInstalled {
				return exitCode(code)
			}
			return nil
		},
	}
	installFlags(cmd, &runAs)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func writeReport(w io.Writer, report interface{ WriteText(io.Writer) error }, output string) error {
	if output == "text" {
		return report.WriteText(w)
	}
	return escape.WriteJSON(w, report, "  ")
}

func runCommand(config configFunc) *cobra.Command {
	var runAs string
	var replace bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Install, then watch and repair the registration until stopped",
		Long: `Installs, then repairs the registration: immediately after a change of its registry keys, and at every
interval. It logs what it repairs. SIGTERM or Ctrl+C stops it; the plugin remains installed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < time.Second {
				return fmt.Errorf("--interval %v: the minimum is 1s", interval)
			}
			c, err := withDLL(config, runAs, replace)
			if err != nil {
				return err
			}
			results, err := record.New(os.Getenv, interval)
			if err != nil {
				return err
			}
			return installer.Run(cmd.Context(), &c, interval, results)
		},
	}
	installFlags(cmd, &runAs)
	replaceFlag(cmd, &replace)
	cmd.Flags().DurationVar(&interval, "interval", 30*time.Second, "interval for checking everything")
	return cmd
}

func checkDomainCommand() *cobra.Command {
	var o dccheck.Options
	var output string
	cmd := &cobra.Command{
		Use:   "check-domain",
		Short: "Check which domain controllers this host can reach, and print its clock",
		Long: `Queries DNS for the domain controllers (_ldap._tcp.dc._msdcs.<domain>). On each, it connects to the TCP
ports that a gMSA needs: 53 DNS, 88 Kerberos, 389 LDAP, 636 LDAPS, 9389 Active Directory Web Services. A port is open,
closed (connection refused) or filtered (no response). It does not sign in. gmsactl verify compares the clock with a
domain controller's: Kerberos accepts a difference of 5 minutes.

Exit codes:
  0  a domain controller responds on the ports of Kerberos and LDAP
  1  none responds`,
		Example: "  ccg-plugin-installer check-domain --domain corp.example.com",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: must be text or json", output)
			}
			report := dccheck.Check(cmd.Context(), o)
			if err := writeReport(cmd.OutOrStdout(), report, output); err != nil {
				return err
			}
			if !report.Reachable() {
				return exitCode(installer.ExitFailed)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Domain, "domain", "", "DNS name of the domain (required)")
	cmd.Flags().StringVar(&o.DNSServer, "dns-server", "", "address[:port] of the DNS server (default: the host's)")
	cmd.Flags().DurationVar(&o.Timeout, "timeout", dccheck.DefaultTimeout,
		"timeout of one DNS query, and of one connection")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	_ = cmd.MarkFlagRequired("domain")
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print this program's version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { escape.Fprintf(cmd.OutOrStdout(), "%s\n", version.String()) },
	}
}
