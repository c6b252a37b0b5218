package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/escape"
)

// Cause is the reason for a failure. Its texts contain no account and no server: those are in the Error.
type Cause struct {
	Name   string // stable, kebab-case
	Text   string // the failure, in whole sentences
	Remedy string // what to do
}

var (
	DNSUnreachable = &Cause{
		Name: "dns-unreachable",
		Text: "The DNS server does not answer, or reports a failure.",
		Remedy: "Check that the DNS server runs and that UDP and TCP port 53 are open from here, or use another DNS " +
			"server (--dns-server).",
	}
	DNSNotFound = &Cause{
		Name: "dns-not-found",
		Text: "DNS has no record of the name, or no domain controllers for the domain.",
		Remedy: "Correct the domain's DNS name, use a DNS server that knows the domain (--dns-server), or specify a " +
			"domain controller (--dc).",
	}
	DCUnreachable = &Cause{
		Name: "dc-unreachable",
		Text: "The domain controller cannot be reached.",
		Remedy: "Check that it runs and that no firewall blocks TCP ports 88 (Kerberos), 389 (LDAP) and 636 (LDAPS) " +
			"from here.",
	}
	Timeout = &Cause{
		Name: "timeout",
		Text: "The domain controller took too long to answer.",
		Remedy: "Check the load of the domain controller and the network, use another domain controller (--dc), or " +
			"allow more time (--timeout).",
	}
	WrongDomain = &Cause{
		Name:   "wrong-domain",
		Text:   "The server is a domain controller of another domain.",
		Remedy: "Correct the domain's DNS name, or specify a domain controller of this domain (--dc).",
	}
	CertificateNotTrusted = &Cause{
		Name: "certificate-not-trusted",
		Text: "The domain controller's TLS certificate is not trusted.",
		Remedy: "Specify the CA that signed it (--ldap-ca) and the server name that is in the certificate, or use " +
			"Kerberos, which needs no certificate (--ldap kerberos).",
	}
	EncryptionRefused = &Cause{
		Name: "encryption-refused",
		Text: "The domain controller does not support the requested protection, or requires a stronger one.",
		Remedy: "Use Kerberos (--ldap kerberos), or install a certificate for LDAPS on the domain controller. " +
			"Nothing is sent unprotected.",
	}
	UnknownAccount = &Cause{
		Name: "unknown-account",
		Text: "The domain has no account of this name.",
		Remedy: "Correct the user name: it is the sAMAccountName, without domain, of an account in this domain, such " +
			"as gmsa-reader.",
	}
	WrongPassword = &Cause{
		Name: "wrong-password",
		Text: "The password is wrong.",
		Remedy: "Use the account's current password. Also check the user name: over LDAP, Active Directory gives the " +
			"same answer if it does not exist.",
	}
	AccountDisabled = &Cause{
		Name:   "account-disabled",
		Text:   "The account is disabled.",
		Remedy: "Enable it: Enable-ADAccount <account>.",
	}
	AccountLocked = &Cause{
		Name: "account-locked",
		Text: "The account is locked out after too many wrong passwords.",
		Remedy: "Unlock it (Unlock-ADAccount <account>) and find the source of the wrong password. A Secret with an " +
			"old password causes a failed logon at each pod start.",
	}
	AccountExpired = &Cause{
		Name:   "account-expired",
		Text:   "The account has expired.",
		Remedy: "Remove the expiration date, or set a later one: Clear-ADAccountExpiration <account>.",
	}
	AccountRevoked = &Cause{
		Name: "account-revoked",
		Text: "The account is disabled, locked out or expired; Kerberos does not report which.",
		Remedy: "Check it with Get-ADUser <account> -Properties Enabled,LockedOut,AccountExpirationDate, or use " +
			"LDAPS, which reports the state (--ldap ldaps with --ldap-ca).",
	}
	PasswordExpired = &Cause{
		Name: "password-expired",
		Text: "The account's password has expired.",
		Remedy: "Set a new password. If the domain's policy allows it, set the password to never expire: Set-ADUser " +
			"<account> -PasswordNeverExpires $true.",
	}
	MustChangePassword = &Cause{
		Name: "must-change-password",
		Text: "The account must change its password at the next logon, which a service cannot do.",
		Remedy: "Clear the flag (Set-ADUser <account> -ChangePasswordAtLogon $false), or set a new password without " +
			"the flag.",
	}
	LogonRestricted = &Cause{
		Name: "logon-restricted",
		Text: "The account is not allowed to log on at this time, from this computer or in this way.",
		Remedy: "Remove the account's logon hours and its list of workstations, and check the authentication policy " +
			"that applies to it.",
	}
	ClockSkew = &Cause{
		Name: "clock-skew",
		Text: "The clocks of this machine and of the domain controller differ by more than Kerberos allows, which is " +
			"5 minutes.",
		Remedy: "Synchronize both clocks with NTP.",
	}
	EncryptionTypeUnsupported = &Cause{
		Name: "encryption-type-unsupported",
		Text: "The account and this program have no Kerberos encryption type in common.",
		Remedy: "Allow AES for the account (Set-ADUser or Set-ADServiceAccount <account> -KerberosEncryptionType " +
			"AES128,AES256). If the password is older than the domain's AES support, set it again to create AES keys.",
	}
	KDCRefused = &Cause{
		Name: "kdc-refused",
		Text: "The Kerberos service of the domain refused the request.",
		Remedy: "The domain controller's text gives the reason. If the gMSA's password has just changed, wait until " +
			"the domain controllers have replicated.",
	}
	GMSANotFound = &Cause{
		Name: "gmsa-not-found",
		Text: "The domain has no gMSA of this name, or the account cannot see it.",
		Remedy: "Correct the name (Get-ADServiceAccount -Filter *). The impersonation account and the gMSA must be " +
			"in the same domain.",
	}
	NotAGMSA = &Cause{
		Name: "not-a-gmsa",
		Text: "The account exists, but is not a group Managed Service Account.",
		Remedy: "Specify a gMSA, or create one: New-ADServiceAccount <name> -DNSHostName <name>.<domain> " +
			"-PrincipalsAllowedToRetrieveManagedPassword <group>.",
	}
	GMSADisabled = &Cause{
		Name: "gmsa-disabled",
		Text: "The gMSA is disabled, locked out or expired.",
		Remedy: "Check it with Get-ADServiceAccount <gmsa> -Properties Enabled,LockedOut,AccountExpirationDate. If " +
			"it is disabled, enable it: Enable-ADAccount <gmsa>$.",
	}
	NoReadPermission = &Cause{
		Name: "no-read-permission",
		Text: "The account is not allowed to read the gMSA's password.",
		Remedy: "Allow the account, or a group that contains it, to read the password: Set-ADServiceAccount <gmsa> " +
			"-PrincipalsAllowedToRetrieveManagedPassword <principals>. The list replaces the existing one.",
	}
	NoKDSKey = &Cause{
		Name:   "no-kds-key",
		Text:   "The domain has no KDS root key for the gMSA's password.",
		Remedy: "Create one, once per forest: Add-KdsRootKey -EffectiveImmediately. It takes effect after 10 hours.",
	}
	ManagedPasswordDamaged = &Cause{
		Name:   "managed-password-damaged",
		Text:   "The managed password from the domain controller does not have the documented format.",
		Remedy: "Use another domain controller (--dc). If it sends the same, report this as a bug.",
	}
	AnswerInvalid = &Cause{
		Name: "answer-invalid",
		Text: "The server's answer is truncated, too large, or not that of a domain controller.",
		Remedy: "Check that the name and the port are those of a domain controller, and that no proxy changes the " +
			"data.",
	}
	Referral = &Cause{
		Name:   "referral",
		Text:   "The server refers to another server. Referrals are not followed.",
		Remedy: "Specify a domain controller of the domain itself (--dc).",
	}
	SizeLimit = &Cause{
		Name:   "size-limit",
		Text:   "The domain controller found more entries than it is allowed to return.",
		Remedy: "Check that the account's name is unique in the domain.",
	}
	Unexpected = &Cause{
		Name:   "unexpected",
		Text:   "The domain controller gave an unknown answer.",
		Remedy: "The message contains the answer. Look for it in the domain controller's event log.",
	}
)

// Causes lists all causes, in the order of the steps that can fail with them.
var Causes = []*Cause{
	DNSUnreachable, DNSNotFound, DCUnreachable, Timeout, WrongDomain, CertificateNotTrusted, EncryptionRefused,
	UnknownAccount, WrongPassword, AccountDisabled, AccountLocked, AccountExpired, AccountRevoked, PasswordExpired,
	MustChangePassword, LogonRestricted, ClockSkew, EncryptionTypeUnsupported, KDCRefused,
	GMSANotFound, NotAGMSA, GMSADisabled, NoReadPermission, NoKDSKey, ManagedPasswordDamaged,
	AnswerInvalid, Referral, SizeLimit, Unexpected,
}

// Error is the type of each error of this package, except the error of a cancelled context.
type Error struct {
	Cause   *Cause
	Subject string // the account, the gMSA or the domain
	Server  string // the server of the request; "": none
	Err     error  // the server's answer or the local error; can be nil
}

// Error returns one line: the subject, the cause's text, and the server's answer. The remedy is in the cause.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Subject != "" {
		b.WriteString(e.Subject + ": ")
	}
	b.WriteString(strings.TrimSuffix(e.Cause.Text, "."))
	detail := e.Server
	if e.Err != nil {
		if detail != "" {
			detail += ": "
		}
		detail += e.Err.Error()
	}
	if detail != "" {
		fmt.Fprintf(&b, " (%s)", detail)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// interrupted returns err or, if the caller cancelled ctx, an error without a cause. After a cancellation, the
// connection's error looks like a server that does not answer. An error about the account keeps its cause, and a ctx
// whose deadline has passed is a Timeout.
func interrupted(ctx context.Context, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || aboutAccount(e.Cause) || !errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return fmt.Errorf("%s: interrupted: %w", e.Subject, ctx.Err())
}

// CauseOf returns the cause of an error of this package, also if it is wrapped, or nil.
func CauseOf(err error) *Cause {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Cause
	}
	return nil
}

func (c *Cause) of(subject, server string, err error) *Error {
	return &Error{Cause: c, Subject: subject, Server: server, Err: err}
}

// sanitize escapes and shortens text from a server.
func sanitize(text string) string {
	escaped, more := escape.Limited(strings.TrimSpace(text), 300)
	if more {
		escaped += "…"
	}
	return escaped
}
