// Command ccg-plugin-installer puts the CCG plugin on a Windows host, registers it, keeps it registered, proves that it
// activates, and takes it away.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/dccheck"
	"github.com/ccgrkc/ccgrkc/internal/installer"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {
	// Windows ends a container with CTRL_SHUTDOWN_EVENT, which Go delivers as SIGTERM.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ccg-plugin-installer:", err)
		os.Exit(installer.ExitFailed)
	}
}

// exitCode is an outcome that has already been told.
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
		Short: "Install the CCG plugin on this Windows host and keep it installed",
		Long: `Installs the Container Credential Guard plugin, class ` + installer.CLSID + `, on this Windows host.

What it makes:
  C:\Program Files\CCGRKC\ccg-plugin-<hash>.dll                            the plugin, from inside this program
  HKLM\SOFTWARE\Classes\CLSID\{...}, AppID\{...}                           its registration with COM
  HKLM\SYSTEM\CurrentControlSet\Control\CCG\COMClasses\{...}               its registration with Container Credential Guard
  HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\CCGRKC       its event source

Run it as SYSTEM, as the HostProcess DaemonSet of the chart rancher-gmsa-plugin-installer does: only SYSTEM and services may
activate the class, and every install proves that it activates. Every command may be repeated, and may be killed at any
moment: the next install or uninstall repairs what was left half done.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	logs.Add(root.PersistentFlags())
	root.AddCommand(installCommand(config), uninstallCommand(config), statusCommand(config), runCommand(config), checkDomainCommand(),
		versionCommand())
	return root
}

type configFunc func() (installer.Config, error)

// installFlags are what the registration depends on. status needs to know them too.
func installFlags(cmd *cobra.Command, runAs *string) {
	cmd.Flags().StringVar(runAs, "run-as", string(installer.NetworkService), `the account that the plugin runs as: network-service,
local-service, or launching-user (no account of its own: whoever activates it)`)
}

func replaceFlag(cmd *cobra.Command, replace *bool) {
	cmd.Flags().BoolVar(replace, "replace-foreign", false, `replace a registration of the same class that another product
made, such as Rancher's C# plugin; without this flag it is refused`)
}

// withDLL completes the configuration of every command but uninstall, which works without a DLL.
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
		Short: "Install or upgrade the plugin, prove that it activates, and end",
		Long: `Installs or upgrades the plugin and proves it: the class is activated out of process, as ccg.exe does it, and must
answer from the DLL that was just installed. After an upgrade, a surrogate that still runs the last version is waited for,
for up to 30 s. On a host where all is well nothing is changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := withDLL(config, runAs, replace)
			if err != nil {
				return err
			}
			if err := installer.Install(cmd.Context(), &c); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "installed, and the class answers")
			return nil
		},
	}
	installFlags(cmd, &runAs)
	replaceFlag(cmd, &replace)
	return cmd
}

func uninstallCommand(config configFunc) *cobra.Command {
	var stay bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything that install makes",
		Long: `Removes every registry key and file that install makes, and reads back that nothing is left. A DLL that a surrogate
still has loaded is waited for, for up to 30 s; one that stays loaded is moved aside and deleted when the host restarts, or by
the next uninstall, and the log says so. Another product's registration of the same class is left alone.

With --keep-running it goes on until stopped and removes again what comes back, as an installer that is just ending may bring it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config()
			if err != nil {
				return err
			}
			if err := installer.Uninstall(cmd.Context(), &c); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "uninstalled, and nothing is registered any more")
			for stay && pause(cmd.Context(), stayEvery) {
				if err := installer.Uninstall(cmd.Context(), &c); err != nil && cmd.Context().Err() == nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&stay, "keep-running", false, "when all is gone, keep it so until stopped")
	return cmd
}

// stayEvery is how often uninstall --keep-running looks again. uninstall-hook waits for longer than that.
const stayEvery = 5 * time.Second

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
		Short: "Tell, key by key, whether the plugin is installed as this version would install it",
		Long: `Compares the host with what this version installs, key by key, and changes nothing. If all is as it should be, the
class is activated too, and must answer.

Exit codes:
  0  installed and healthy
  1  the host could not be looked at
  3  not installed
  4  drift: something differs, is missing, is left half done or belongs to another product, or the class does not answer`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("output %q is not known: use text or json", output)
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
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

func runCommand(config configFunc) *cobra.Command {
	var runAs string
	var replace bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Install, then watch the registration and heal it until stopped",
		Long: `Installs, then keeps the registration as it should be: a change of its keys is seen at once, anything else at every
interval. What was found and healed is logged. SIGTERM or Ctrl+C ends it and leaves the plugin installed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < time.Second {
				return fmt.Errorf("interval %v is too short: use 1s or more", interval)
			}
			c, err := withDLL(config, runAs, replace)
			if err != nil {
				return err
			}
			return installer.Run(cmd.Context(), &c, interval)
		},
	}
	installFlags(cmd, &runAs)
	replaceFlag(cmd, &replace)
	cmd.Flags().DurationVar(&interval, "interval", 30*time.Second, "how often everything is checked")
	return cmd
}

func checkDomainCommand() *cobra.Command {
	var o dccheck.Options
	var output string
	cmd := &cobra.Command{
		Use:   "check-domain",
		Short: "Tell what this host can reach of an Active Directory domain, and this host's clock",
		Long: `Asks DNS for the domain controllers (_ldap._tcp.dc._msdcs.<domain>) and connects to the TCP ports that a gMSA needs of
each: 53 DNS, 88 Kerberos, 389 LDAP, 636 LDAPS, 9389 Active Directory Web Services. A port is open, closed (refused) or filtered (no
answer). It signs in nowhere. The clock is for gmsactl verify, which compares it with a domain controller's: Kerberos bears a
difference of 5 minutes.

Exit codes:
  0  a domain controller answers on the ports of Kerberos and LDAP
  1  none does`,
		Example: "  ccg-plugin-installer check-domain --domain corp.example.com",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("output %q is not known: use text or json", output)
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
	cmd.Flags().StringVar(&o.DNSServer, "dns-server", "", "address[:port] of the DNS server to ask (default: the host's)")
	cmd.Flags().DurationVar(&o.Timeout, "timeout", dccheck.DefaultTimeout, "of one DNS question, and of one connection")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	_ = cmd.MarkFlagRequired("domain")
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print this program's version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
	}
}
