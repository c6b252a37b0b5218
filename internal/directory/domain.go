package directory

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Domain contains the properties of a domain that a credential spec needs.
type Domain struct {
	SID           string // S-1-5-21-…
	GUID          string // lower case, without braces
	DNSName       string
	NetBIOSName   string
	ForestDNSName string // DNS name of the forest's root domain
}

// Domain reads the domain.
func (s *Session) Domain(ctx context.Context) (_ Domain, err error) {
	defer func() { err = interrupted(ctx, err) }()
	subject := "domain " + s.config.Domain
	damaged := func(what string, err error) (Domain, error) {
		return Domain{}, AnswerInvalid.of(subject, s.server, fmt.Errorf("%s: %w", what, err))
	}
	objects, err := s.search(ctx, subject, &ldap.SearchRequest{
		BaseDN:     s.root.domain,
		Scope:      ldap.ScopeBaseObject,
		SizeLimit:  1,
		Filter:     "(objectClass=*)",
		Attributes: []string{"objectSid", "objectGUID"},
	})
	if err != nil {
		return Domain{}, err
	}
	if len(objects) != 1 {
		return damaged("domain object", errors.New("missing"))
	}
	// The names are in crossRef objects ([MS-ADTS] 6.1.1.2.1.1): one for this domain, one for the forest's root domain.
	crosses, err := s.search(ctx, subject, &ldap.SearchRequest{
		BaseDN:    "CN=Partitions," + s.root.configuration,
		Scope:     ldap.ScopeSingleLevel,
		SizeLimit: 4,
		Filter: fmt.Sprintf("(&(objectClass=crossRef)(|(nCName=%s)(nCName=%s)))",
			ldap.EscapeFilter(s.root.domain), ldap.EscapeFilter(s.root.forest)),
		Attributes: []string{"nCName", "nETBIOSName", "dnsRoot"},
	})
	if err != nil {
		return Domain{}, err
	}
	var d Domain
	for _, cross := range crosses {
		name, root := cross.GetAttributeValue("nCName"), cross.GetAttributeValue("dnsRoot")
		if strings.EqualFold(name, s.root.domain) {
			d.DNSName, d.NetBIOSName = root, cross.GetAttributeValue("nETBIOSName")
		}
		if strings.EqualFold(name, s.root.forest) {
			d.ForestDNSName = root
		}
	}
	if d.SID, err = sidString(objects[0].GetRawAttributeValue("objectSid")); err != nil {
		return damaged("SID", err)
	}
	if d.GUID, err = guidString(objects[0].GetRawAttributeValue("objectGUID")); err != nil {
		return damaged("GUID", err)
	}
	for what, value := range map[string]string{
		"DNS name":               d.DNSName,
		"NetBIOS name":           d.NetBIOSName,
		"DNS name of the forest": d.ForestDNSName,
	} {
		if value == "" {
			return damaged(what, errors.New("missing"))
		}
	}
	return d, nil
}

// GMSA contains the properties of a gMSA that each account of the domain can read.
type GMSA struct {
	Name             string // sAMAccountName without $
	DN               string
	SID              string
	DNSHostName      string
	Enabled          bool
	SPNs             []string
	EncryptionTypes  uint32        // msDS-SupportedEncryptionTypes ([MS-KILE] 2.2.7); 0: the domain's default
	PasswordInterval time.Duration // the lifetime of a password
	PasswordLastSet  time.Time     // zero: never
	Readers          []string      // can read the password: names of the domain's accounts and groups, SIDs of others
}

const gmsaClass = "msDS-GroupManagedServiceAccount"

// GMSA reads a gMSA. The name can have a trailing $.
func (s *Session) GMSA(ctx context.Context, name string) (_ GMSA, err error) {
	defer func() { err = interrupted(ctx, err) }()
	e, err := s.gmsa(ctx, name, "objectSid", "dNSHostName", "servicePrincipalName", "msDS-SupportedEncryptionTypes",
		"msDS-ManagedPasswordInterval", "pwdLastSet", "msDS-GroupMSAMembership")
	if err != nil {
		return GMSA{}, err
	}
	const maxDays = 100 * 365 // so that the duration does not overflow
	days := min(max(integer(e, "msDS-ManagedPasswordInterval"), 0), maxDays)
	g := GMSA{
		Name:             strings.TrimSuffix(e.GetAttributeValue("sAMAccountName"), "$"),
		DN:               e.DN,
		DNSHostName:      e.GetAttributeValue("dNSHostName"),
		Enabled:          enabled(e),
		SPNs:             e.GetAttributeValues("servicePrincipalName"),
		EncryptionTypes:  uint32(integer(e, "msDS-SupportedEncryptionTypes")),
		PasswordInterval: time.Duration(days) * 24 * time.Hour,
		PasswordLastSet:  fileTime(integer(e, "pwdLastSet")),
	}
	if g.SID, err = sidString(e.GetRawAttributeValue("objectSid")); err != nil {
		return GMSA{}, AnswerInvalid.of("gMSA "+g.Name, s.server, fmt.Errorf("SID: %w", err))
	}
	if sd := e.GetRawAttributeValue("msDS-GroupMSAMembership"); len(sd) > 0 { // absent if the account cannot see it
		sids, err := allowedSIDs(sd)
		if err != nil {
			return GMSA{}, AnswerInvalid.of("gMSA "+g.Name, s.server, fmt.Errorf("msDS-GroupMSAMembership: %w", err))
		}
		if g.Readers, err = s.names(ctx, "gMSA "+g.Name, sids); err != nil {
			return GMSA{}, err
		}
	}
	return g, nil
}

// gmsa finds a gMSA. It distinguishes a name of another kind of account (NotAGMSA) from an unknown name (GMSANotFound).
func (s *Session) gmsa(ctx context.Context, name string, attributes ...string) (*ldap.Entry, error) {
	name = strings.TrimSuffix(name, "$")
	subject := fmt.Sprintf("gMSA %.80q", name)
	if plain := sanitize(name); plain == name {
		subject = "gMSA " + name
	}
	if name == "" {
		return nil, GMSANotFound.of("gMSA", s.server, errors.New("the name is empty"))
	}
	escaped := ldap.EscapeFilter(name)
	found, err := s.search(ctx, subject, &ldap.SearchRequest{
		BaseDN:     s.root.domain,
		Scope:      ldap.ScopeWholeSubtree,
		SizeLimit:  4,
		Filter:     fmt.Sprintf("(|(sAMAccountName=%s$)(sAMAccountName=%s))", escaped, escaped),
		Attributes: append([]string{"sAMAccountName", "objectClass", "userAccountControl"}, attributes...),
	})
	if err != nil {
		e := err.(*Error)
		if l, ok := errors.AsType[*ldapResult](err); ok && l.code == ldap.LDAPResultNoSuchObject {
			e.Cause = GMSANotFound
		}
		return nil, e
	}
	for _, e := range found {
		for _, class := range e.GetAttributeValues("objectClass") {
			if strings.EqualFold(class, gmsaClass) {
				return e, nil
			}
		}
	}
	if len(found) > 0 {
		classes := found[0].GetAttributeValues("objectClass")
		return nil, NotAGMSA.of(subject, s.server, fmt.Errorf("it is a %s", sanitize(classes[max(0, len(classes)-1)])))
	}
	return nil, GMSANotFound.of(subject, s.server, nil)
}

// names resolves the SIDs of this domain in one search. Other SIDs remain SIDs.
func (s *Session) names(ctx context.Context, subject string, sids [][]byte) ([]string, error) {
	const maxSIDs = 100
	var filter strings.Builder
	for _, sid := range sids[:min(len(sids), maxSIDs)] {
		filter.WriteString("(objectSid=")
		for _, b := range sid {
			fmt.Fprintf(&filter, `\%02x`, b)
		}
		filter.WriteString(")")
	}
	byName := map[string]string{}
	if filter.Len() > 0 {
		found, err := s.search(ctx, subject, &ldap.SearchRequest{
			BaseDN:     s.root.domain,
			Scope:      ldap.ScopeWholeSubtree,
			SizeLimit:  maxSIDs,
			Filter:     "(|" + filter.String() + ")",
			Attributes: []string{"sAMAccountName", "objectSid"},
		})
		if err != nil {
			return nil, err
		}
		for _, e := range found {
			byName[string(e.GetRawAttributeValue("objectSid"))] = e.GetAttributeValue("sAMAccountName")
		}
	}
	var names []string
	for _, sid := range sids {
		name := byName[string(sid)]
		if name == "" {
			var err error
			if name, err = sidString(sid); err != nil {
				return nil, AnswerInvalid.of(subject, s.server, fmt.Errorf("msDS-GroupMSAMembership: %w", err))
			}
		}
		names = append(names, name)
	}
	return names, nil
}

func enabled(e *ldap.Entry) bool {
	const disabled = 0x2 // ADS_UF_ACCOUNTDISABLE, [MS-ADTS] 2.2.16
	return integer(e, "userAccountControl")&disabled == 0
}

// integer returns the value of an attribute, or 0 if it is absent.
func integer(e *ldap.Entry, attribute string) int64 {
	n, _ := strconv.ParseInt(e.GetAttributeValue(attribute), 10, 64)
	return n
}

// fileTime converts a FILETIME: units of 100 nanoseconds since 1601 ([MS-DTYP] 2.3.3). 0 and "never" become the zero
// time.
func fileTime(n int64) time.Time {
	const to1970 = 116444736000000000
	if n <= 0 || n == 1<<63-1 {
		return time.Time{}
	}
	return time.Unix((n-to1970)/1e7, (n-to1970)%1e7*100).UTC()
}
