package ad

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// Encryption types of an account ([MS-KILE] 2.2.7, msDS-SupportedEncryptionTypes).
const (
	RC4 = 0x4
	AES = 0x18 // AES128 and AES256
)

type with = map[string]any

func (d *Domain) do(ctx context.Context, what string, with with) error {
	if err := d.console.call(ctx, nil, what, with); err != nil {
		return fmt.Errorf("domain %s: %w", d.DNSName, err)
	}
	return nil
}

// AddUser creates an enabled user in the given groups. The password does not expire.
func (d *Domain) AddUser(ctx context.Context, name string, password credential.Password, groups ...string) error {
	return d.do(ctx, "add_user", with{"name": name, "password": string(password.Reveal()), "groups": list(groups)})
}

// SetPassword changes a user's password. The old one is invalid immediately. For Reader, it also updates d.Reader.
func (d *Domain) SetPassword(ctx context.Context, name string, password credential.Password) error {
	err := d.do(ctx, "set_password", with{"name": name, "password": string(password.Reveal())})
	if err == nil && name == d.Reader.Username {
		d.Reader.Password = credential.NewPassword([]byte(string(password.Reveal())))
	}
	return err
}

// NewPassword returns a random password that meets the domain's policy.
func NewPassword() credential.Password { return newPassword() }

// Remove deletes a user, a group or a gMSA.
func (d *Domain) Remove(ctx context.Context, name string) error {
	return d.do(ctx, "remove", with{"name": name})
}

// Disable disables a user or a gMSA. The $ of a gMSA is optional.
func (d *Domain) Disable(ctx context.Context, name string) error {
	return d.do(ctx, "enable", with{"name": name, "on": false})
}

// Enable reverses Disable.
func (d *Domain) Enable(ctx context.Context, name string) error {
	return d.do(ctx, "enable", with{"name": name, "on": true})
}

// Lock locks a user for half an hour, with wrong passwords over LDAPS.
func (d *Domain) Lock(ctx context.Context, name string) error {
	return d.do(ctx, "lock", with{"name": name, "address": d.Address})
}

// Unlock reverses Lock.
func (d *Domain) Unlock(ctx context.Context, name string) error {
	return d.do(ctx, "unlock", with{"name": name})
}

// Expire sets the expiration of a user's account to an hour ago.
func (d *Domain) Expire(ctx context.Context, name string) error {
	return d.do(ctx, "expire", with{"name": name, "seconds_ago": 3600})
}

// ExpirePassword sets the age of a user's password to a year. The domain's maximum is 42 days.
func (d *Domain) ExpirePassword(ctx context.Context, name string) error {
	return d.do(ctx, "expire_password", with{"name": name})
}

// MustChange sets a password that the user must change at the next logon.
func (d *Domain) MustChange(ctx context.Context, name string, password credential.Password) error {
	return d.do(ctx, "set_password", with{"name": name, "password": string(password.Reveal()), "must_change": true})
}

// RestrictLogonHours removes all logon hours of a user.
func (d *Domain) RestrictLogonHours(ctx context.Context, name string) error {
	none := hex.EncodeToString(make([]byte, 21))
	return d.do(ctx, "set_bytes", with{"name": name, "attribute": "logonHours", "value": none})
}

// RestrictWorkstations allows a user to log on only to a computer that does not exist.
func (d *Domain) RestrictWorkstations(ctx context.Context, name string) error {
	return d.Set(ctx, name, "userWorkstations", "NOSUCHPC")
}

// Set replaces an attribute of an account, or removes it if there are no values.
func (d *Domain) Set(ctx context.Context, name, attribute string, values ...string) error {
	return d.do(ctx, "set", with{"name": name, "attribute": attribute, "values": list(values)})
}

// Get returns an attribute of an account, as text. It cannot return msDS-ManagedPassword.
func (d *Domain) Get(ctx context.Context, name, attribute string) (values []string, err error) {
	return values, d.console.call(ctx, &values, "get", with{"name": name, "attribute": attribute})
}

// AddMember adds an account to a group. Existing Kerberos tickets and connections keep the old groups.
func (d *Domain) AddMember(ctx context.Context, group, member string) error {
	return d.do(ctx, "change_group", with{"name": group, "members": []string{member}, "add": true})
}

// RemoveMember reverses AddMember.
func (d *Domain) RemoveMember(ctx context.Context, group, member string) error {
	return d.do(ctx, "change_group", with{"name": group, "members": []string{member}, "add": false})
}

// AddGMSA creates an enabled gMSA whose password the readers can read. The gMSA has AES and RC4 keys and is 70 days
// old. Its password is 25 days old and changes every 30 days.
func (d *Domain) AddGMSA(ctx context.Context, name string, readers ...string) error {
	return d.do(ctx, "add_gmsa", with{
		"name":             name,
		"readers":          list(readers),
		"interval":         30,
		"encryption_types": AES | RC4,
	})
}

// RemoveGMSA deletes a gMSA.
func (d *Domain) RemoveGMSA(ctx context.Context, name string) error { return d.Remove(ctx, name) }

// DisableGMSA disables a gMSA; Enable enables it.
func (d *Domain) DisableGMSA(ctx context.Context, name string) error { return d.Disable(ctx, name) }

// Grant allows a user or a group to read a gMSA's password.
func (d *Domain) Grant(ctx context.Context, gmsa, principal string) error {
	return d.do(ctx, "grant", with{"gmsa": gmsa, "principal": principal, "allow": true})
}

// Revoke reverses Grant.
func (d *Domain) Revoke(ctx context.Context, gmsa, principal string) error {
	return d.do(ctx, "grant", with{"gmsa": gmsa, "principal": principal, "allow": false})
}

// RollManagedPassword changes a gMSA's password, as the domain controller does every 30 days. The old password becomes
// the previous one and is no longer valid for a ticket. A gMSA supports five changes. The domain controller must run.
func (d *Domain) RollManagedPassword(ctx context.Context, gmsa string) error {
	return d.do(ctx, "roll", with{"gmsa": gmsa, "address": d.Address})
}

// RemoveKDSKeys deletes the KDS root keys. After that, no managed password can be read, because Samba computes the
// password for each read.
func (d *Domain) RemoveKDSKeys(ctx context.Context) error { return d.do(ctx, "remove_kds_keys", nil) }

// AddKDSKey creates a KDS root key that is effective immediately.
func (d *Domain) AddKDSKey(ctx context.Context) error { return d.do(ctx, "add_kds_key", nil) }

// AddDeadDC adds a domain controller to DNS, at an address where nothing listens, and returns its host name. priority
// is that of its SRV records. The real domain controller has 0. Lower priorities are tried first, equal ones in random
// order.
func (d *Domain) AddDeadDC(ctx context.Context, name string, priority uint16) (string, error) {
	// takeAddress does not use this block.
	err := d.do(ctx, "add_dc_record", with{"host": name, "address": "127.78.0.1", "priority": priority})
	return name + "." + d.DNSName, err
}

// Now returns the domain controller's time.
func (d *Domain) Now() time.Time { return time.Now().Add(d.options.ClockOffset) }

// list never returns nil, which Python would get as None.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
