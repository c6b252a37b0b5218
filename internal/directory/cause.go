package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Cause is why something did not work, in words that name no account or server: those are in the Error.
type Cause struct {
	Name   string // stable, kebab-case
	Text   string // what happened: one sentence
	Remedy string // what to do
}

var (
	DNSUnreachable = &Cause{"dns-unreachable", "The DNS server does not answer, or says that it cannot.",
		"See that the DNS server runs and that UDP and TCP port 53 are open from here, or name another with --dns-server."}
	DNSNotFound = &Cause{"dns-not-found", "DNS does not know the name, or has no domain controllers for the domain.",
		"Correct the domain's DNS name, ask a DNS server that knows the domain (--dns-server), or name a domain controller (--dc)."}
	DCUnreachable = &Cause{"dc-unreachable", "The domain controller cannot be reached.",
		"See that it runs and that no firewall stands between: TCP 88 (Kerberos), 389 (LDAP) and 636 (LDAPS) must be open from here."}
	Timeout = &Cause{"timeout", "The domain controller took too long to answer.",
		"See how busy the domain controller and the way to it are, name another (--dc), or allow more time (--timeout)."}
	WrongDomain = &Cause{"wrong-domain", "The server is a domain controller of another domain.",
		"Correct the domain's DNS name, or name a domain controller of this domain (--dc)."}
	CertificateNotTrusted = &Cause{"certificate-not-trusted", "The domain controller's TLS certificate is not trusted.",
		"Give the CA that signed it (--ldap-ca) and use the name that the certificate carries, or use Kerberos, which needs no certificate (--ldap kerberos)."}
	EncryptionRefused = &Cause{"encryption-refused", "The domain controller does not offer the protection that was asked for, or asks for more.",
		"Use Kerberos (--ldap kerberos), or give the domain controller a certificate for LDAPS. Nothing is sent unprotected."}
	UnknownAccount = &Cause{"unknown-account", "The domain has no account of this name.",
		"Correct the user name: it is the bare sAMAccountName, such as gmsa-reader, of an account in this very domain."}
	WrongPassword = &Cause{"wrong-password", "The password is wrong.",
		"Write the account's present password. Over LDAP, Active Directory gives the same answer for a user name that does not exist: check that too."}
	AccountDisabled = &Cause{"account-disabled", "The account is disabled.",
		"Enable it: Enable-ADAccount <account>."}
	AccountLocked = &Cause{"account-locked", "The account is locked out after too many wrong passwords.",
		"Unlock it (Unlock-ADAccount <account>) and find out who uses a wrong password: an old Secret counts as a wrong password at every start of a pod."}
	AccountExpired = &Cause{"account-expired", "The account has expired.",
		"Set a later date or none: Clear-ADAccountExpiration <account>."}
	AccountRevoked = &Cause{"account-revoked", "The account is disabled, locked out or expired; Kerberos does not tell which.",
		"Look at it with Get-ADUser <account> -Properties Enabled,LockedOut,AccountExpirationDate, or let LDAPS tell (--ldap ldaps with --ldap-ca)."}
	PasswordExpired = &Cause{"password-expired", "The account's password has expired.",
		"Set a new password, and set it to never expire if the domain's rules allow that: Set-ADUser <account> -PasswordNeverExpires $true."}
	MustChangePassword = &Cause{"must-change-password", "The account must change its password at the next logon, which no service can do.",
		"Clear the flag (Set-ADUser <account> -ChangePasswordAtLogon $false) or set a new password without it."}
	LogonRestricted = &Cause{"logon-restricted", "The account may not log on at this time, from this computer or in this way.",
		"Remove the account's logon hours and its list of workstations, and see which authentication policy covers it."}
	ClockSkew = &Cause{"clock-skew", "The clocks of this machine and of the domain controller differ by more than Kerberos allows, which is 5 minutes.",
		"Set both clocks by NTP."}
	EncryptionTypeUnsupported = &Cause{"encryption-type-unsupported", "The account and this program have no Kerberos encryption type in common.",
		"Let the account use AES (Set-ADUser or Set-ADServiceAccount <account> -KerberosEncryptionType AES128,AES256). A password that is older than the domain's AES support has no AES key: set it again."}
	KDCRefused = &Cause{"kdc-refused", "The Kerberos service of the domain refused the request.",
		"The text from the domain controller says why. For a gMSA whose password just changed, wait until the domain controllers have replicated."}
	GMSANotFound = &Cause{"gmsa-not-found", "The domain has no gMSA of this name, or the account may not see it.",
		"Correct the name (Get-ADServiceAccount -Filter *). A gMSA of another domain is not found: the impersonation account must be of the gMSA's domain."}
	NotAGMSA = &Cause{"not-a-gmsa", "The account exists, but is not a group Managed Service Account.",
		"Name a gMSA, or make one: New-ADServiceAccount <name> -DNSHostName <name>.<domain> -PrincipalsAllowedToRetrieveManagedPassword <group>."}
	GMSADisabled = &Cause{"gmsa-disabled", "The gMSA is disabled, locked out or expired.",
		"Enable it: Enable-ADAccount <gmsa>$; see Get-ADServiceAccount <gmsa> -Properties Enabled,LockedOut,AccountExpirationDate."}
	NoRightToRead = &Cause{"no-right-to-read", "The account may not read the gMSA's password.",
		"Add the account, or a group that it is in, to those that may: Set-ADServiceAccount <gmsa> -PrincipalsAllowedToRetrieveManagedPassword <all that may>."}
	NoKDSKey = &Cause{"no-kds-key", "The domain has no KDS root key from which the gMSA's password could be made.",
		"Make one, once per forest: Add-KdsRootKey -EffectiveImmediately. It counts after 10 hours."}
	ManagedPasswordDamaged = &Cause{"managed-password-damaged", "The managed password that the domain controller sent is not of the documented form.",
		"Ask another domain controller (--dc). If it sends the same, report this as a defect."}
	AnswerInvalid = &Cause{"answer-invalid", "The server's answer is cut off, too large, or no answer of a domain controller.",
		"See that the name and the port are those of a domain controller, and that nothing between changes the data."}
	Referral = &Cause{"referral", "The server refers to another server, which is not followed.",
		"Name a domain controller of the domain itself (--dc)."}
	SizeLimit = &Cause{"size-limit", "The domain controller found more than it may answer with.",
		"There must be one account of a name. See whether the name is unique in the domain."}
	Unexpected = &Cause{"unexpected", "The domain controller gave an answer that has no explanation here.",
		"The text says what it answered; look it up in the domain controller's event log."}
)

// Causes lists all causes, in the order in which a chain of calls can meet them.
var Causes = []*Cause{
	DNSUnreachable, DNSNotFound, DCUnreachable, Timeout, WrongDomain, CertificateNotTrusted, EncryptionRefused,
	UnknownAccount, WrongPassword, AccountDisabled, AccountLocked, AccountExpired, AccountRevoked, PasswordExpired,
	MustChangePassword, LogonRestricted, ClockSkew, EncryptionTypeUnsupported, KDCRefused,
	GMSANotFound, NotAGMSA, GMSADisabled, NoRightToRead, NoKDSKey, ManagedPasswordDamaged,
	AnswerInvalid, Referral, SizeLimit, Unexpected,
}

// Error is every error of this package, but for that of a context that was cancelled.
type Error struct {
	Cause   *Cause
	Subject string // whom or what it is about: an account, a gMSA, a domain
	Server  string // the server that was asked; "" where none was
	Err     error  // what the server said or what was met; may be nil
}

// Error is one sentence: the subject, what happened, and what the server said. The remedy is in the cause.
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

// interrupted is err or, where the caller took ctx back, an error that says so and has no cause: what a connection then
// comes to looks like a server that does not answer. A judgement on the account stands, and a ctx whose time ran out is a Timeout.
func interrupted(ctx context.Context, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || aboutAccount(e.Cause) || !errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return fmt.Errorf("%s: interrupted: %w", e.Subject, ctx.Err())
}

// CauseOf returns the cause of an error of this package, however wrapped, or nil.
func CauseOf(err error) *Cause {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Cause
	}
	return nil
}

func (c *Cause) of(subject, server string, err error) *Error {
	return &Error{Cause: c, Subject: subject, Server: server, Err: err}
}

// said is text from a server, made fit for a terminal and a log: it may be anything.
func said(text string) string {
	const most = 300 // runes
	var b strings.Builder
	n := 0
	for _, r := range strings.TrimSpace(text) {
		if n++; n > most {
			b.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = '.'
		}
		b.WriteRune(r)
	}
	return b.String()
}
