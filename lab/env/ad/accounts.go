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

// AddUser makes an enabled user whose password does not expire, in these groups.
func (d *Domain) AddUser(ctx context.Context, name string, password credential.Password, groups ...string) error {
	return d.do(ctx, "add_user", with{"name": name, "password": string(password.Reveal()), "groups": list(groups)})
}

// SetPassword gives a user another password; the old one is refused from then on. If it is Reader's, Reader is changed.
func (d *Domain) SetPassword(ctx context.Context, name string, password credential.Password) error {
	err := d.do(ctx, "set_password", with{"name": name, "password": string(password.Reveal())})
	if err == nil && name == d.Reader.Username {
		d.Reader.Password = credential.NewPassword([]byte(string(password.Reveal())))
	}
	return err
}

// NewPassword is a random password that the domain takes.
func NewPassword() credential.Password { return newPassword() }

// Remove deletes a user, a group or a gMSA.
func (d *Domain) Remove(ctx context.Context, name string) error {
	return d.do(ctx, "remove", with{"name": name})
}

// Disable disables a user or a gMSA, whose name may lack the $.
func (d *Domain) Disable(ctx context.Context, name string) error {
	return d.do(ctx, "enable", with{"name": name, "on": false})
}

// Enable undoes Disable.
func (d *Domain) Enable(ctx context.Context, name string) error {
	return d.do(ctx, "enable", with{"name": name, "on": true})
}

// Lock locks a user with wrong passwords, over LDAPS, for half an hour.
func (d *Domain) Lock(ctx context.Context, name string) error {
	return d.do(ctx, "lock", with{"name": name, "address": d.Address})
}

// Unlock undoes Lock.
func (d *Domain) Unlock(ctx context.Context, name string) error {
	return d.do(ctx, "unlock", with{"name": name})
}

// Expire makes a user's account one that expired an hour ago.
func (d *Domain) Expire(ctx context.Context, name string) error {
	return d.do(ctx, "expire", with{"name": name, "seconds_ago": 3600})
}

// ExpirePassword makes a user's password a year old, which is more than the domain's maximum of 42 days.
func (d *Domain) ExpirePassword(ctx context.Context, name string) error {
	return d.do(ctx, "expire_password", with{"name": name})
}

// MustChange gives a user a password that must be changed at the next logon.
func (d *Domain) MustChange(ctx context.Context, name string, password credential.Password) error {
	return d.do(ctx, "set_password", with{"name": name, "password": string(password.Reveal()), "must_change": true})
}

// RestrictLogonHours leaves a user no hour of the week to log on at.
func (d *Domain) RestrictLogonHours(ctx context.Context, name string) error {
	return d.do(ctx, "set_bytes", with{"name": name, "attribute": "logonHours", "value": hex.EncodeToString(make([]byte, 21))})
}

// RestrictWorkstations lets a user log on at one computer only, which does not exist.
func (d *Domain) RestrictWorkstations(ctx context.Context, name string) error {
	return d.Set(ctx, name, "userWorkstations", "NOSUCHPC")
}

// Set replaces an attribute of an account. With no values it is removed.
func (d *Domain) Set(ctx context.Context, name, attribute string, values ...string) error {
	return d.do(ctx, "set", with{"name": name, "attribute": attribute, "values": list(values)})
}

// Get returns an attribute of an account, as text. msDS-ManagedPassword is not among those that it can give.
func (d *Domain) Get(ctx context.Context, name, attribute string) (values []string, err error) {
	return values, d.console.call(ctx, &values, "get", with{"name": name, "attribute": attribute})
}

// AddGroup makes a group.
func (d *Domain) AddGroup(ctx context.Context, name string, members ...string) error {
	return d.do(ctx, "add_group", with{"name": name, "members": list(members)})
}

// AddMember puts an account into a group. Who has a Kerberos ticket or a connection already keeps the groups of then.
func (d *Domain) AddMember(ctx context.Context, group, member string) error {
	return d.do(ctx, "change_group", with{"name": group, "members": []string{member}, "add": true})
}

// RemoveMember undoes AddMember.
func (d *Domain) RemoveMember(ctx context.Context, group, member string) error {
	return d.do(ctx, "change_group", with{"name": group, "members": []string{member}, "add": false})
}

// AddGMSA makes an enabled gMSA whose password these users and groups may read. It has AES and RC4 keys, is 70 days old, and
// has a password that is 25 days old and changes every 30 days.
func (d *Domain) AddGMSA(ctx context.Context, name string, readers ...string) error {
	return d.do(ctx, "add_gmsa", with{"name": name, "readers": list(readers), "interval": 30, "encryption_types": AES | RC4})
}

// RemoveGMSA deletes a gMSA.
func (d *Domain) RemoveGMSA(ctx context.Context, name string) error { return d.Remove(ctx, name) }

// DisableGMSA disables a gMSA; Enable enables it.
func (d *Domain) DisableGMSA(ctx context.Context, name string) error { return d.Disable(ctx, name) }

// Grant lets a user or a group read a gMSA's password.
func (d *Domain) Grant(ctx context.Context, gmsa, principal string) error {
	return d.do(ctx, "grant", with{"gmsa": gmsa, "principal": principal, "allow": true})
}

// Revoke undoes Grant.
func (d *Domain) Revoke(ctx context.Context, gmsa, principal string) error {
	return d.do(ctx, "grant", with{"gmsa": gmsa, "principal": principal, "allow": false})
}

// RollManagedPassword gives a gMSA a new password, as time does every 30 days. The one of before becomes the previous one,
// with which nobody gets a ticket any more. It can be done five times with a gMSA; the domain controller must run.
func (d *Domain) RollManagedPassword(ctx context.Context, gmsa string) error {
	return d.do(ctx, "roll", with{"gmsa": gmsa, "address": d.Address})
}

// RemoveKDSKeys deletes the keys from which the passwords of gMSAs are made. None can be read from then on: Samba makes the
// password anew at each reading.
func (d *Domain) RemoveKDSKeys(ctx context.Context) error { return d.do(ctx, "remove_kds_keys", nil) }

// AddKDSKey makes such a key, which counts at once.
func (d *Domain) AddKDSKey(ctx context.Context) error { return d.do(ctx, "add_kds_key", nil) }

// AddDeadDC makes DNS name another domain controller, at an address where nothing listens, with the priority of its SRV
// records: that of the real one is 0 and lower ones are tried first; where they are equal, chance decides. It returns the
// host name.
func (d *Domain) AddDeadDC(ctx context.Context, name string, priority uint16) (string, error) {
	// The address is of this domain's own block, and not one that takeAddress gives out.
	err := d.do(ctx, "add_dc_record", with{"host": name, "address": "127.78.0.1", "priority": priority})
	return name + "." + d.DNSName, err
}

// Now is the domain controller's time.
func (d *Domain) Now() time.Time { return time.Now().Add(d.options.ClockOffset) }

// list is never nil: Python has no use for null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
