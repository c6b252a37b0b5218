package installer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/faultpoint"
	"github.com/ccgrkc/ccgrkc/internal/winsec"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// In Windows, only TrustedInstaller has write access to COMClasses. The installer has to become the key's owner, add an
// entry to the DACL, write, and restore owner and DACL. It first records both in the journal, one value per key, so
// that the next run can restore them if this one is killed.

var ownershipPrivileges = []string{winsec.SeTakeOwnershipPrivilege, winsec.SeRestorePrivilege}

// withAccess applies a change to path, a key under COMClasses. If access is granted, it does not touch owner and DACL.
// Otherwise it changes them temporarily and restores them, even if the change fails. It can call change twice.
func (c *Config) withAccess(path string, change func() error) error {
	err := change()
	if !errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return err
	}
	return winsec.RunWithPrivileges(ownershipPrivileges, func() (err error) {
		before, err := keyDescriptor(path)
		if err != nil {
			return err
		}
		if err := c.recordJournal(path, before); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.restore(path, before)) }()
		faultpoint.Reached("comclasses.journal-written")
		if err := takeOwnership(path); err != nil {
			return err
		}
		faultpoint.Reached("comclasses.owner-taken")
		if err := grantSelf(path, before); err != nil {
			return err
		}
		faultpoint.Reached("comclasses.access-granted")
		err = change()
		faultpoint.Reached("comclasses.changed")
		return err
	})
}

// finishJournal restores owner and DACL of keys that a killed installer has changed.
func (c *Config) finishJournal() error {
	paths, err := c.journalEntries()
	if err != nil || len(paths) == 0 {
		return err
	}
	return winsec.RunWithPrivileges(ownershipPrivileges, func() error {
		for _, path := range paths {
			// This program records only these two keys. Another entry is not from this program.
			if !slices.Contains([]string{c.COMClasses, c.comClassesKey()}, path) {
				return fmt.Errorf(`HKLM\%s contains an entry for %q, which this program never changes: `+
					"check and delete it",
					c.Journal, path)
			}
			c.Log.Warn("a killed installer changed owner and DACL of this key; restoring them", "key", path)
			if err := c.restore(path, readText(c.Journal, path)); err != nil {
				return err
			}
		}
		return nil
	})
}

// restore needs ownershipPrivileges. It removes the journal entry last.
func (c *Config) restore(path, sddl string) error {
	err := restoreDescriptor(path, sddl)
	if err != nil && !errors.Is(err, registry.ErrNotExist) { // a deleted key needs no restore
		return fmt.Errorf(`owner and DACL of HKLM\%s could not be restored to %s; `+
			`HKLM\%s contains them for the next run: %w`,
			path, sddl, c.Journal, err)
	}
	faultpoint.Reached("comclasses.restored")
	return c.dropJournal(path)
}

func restoreDescriptor(path, sddl string) error {
	now, err := keyDescriptor(path)
	if err == nil && now == sddl {
		return nil
	}
	if errors.Is(err, registry.ErrNotExist) {
		return err
	}
	descriptor, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fmt.Errorf("security descriptor %q: %w", sddl, err)
	}
	control, _, err := descriptor.Control()
	if err != nil {
		return err
	}
	information := windows.SECURITY_INFORMATION(windows.OWNER_SECURITY_INFORMATION | windows.DACL_SECURITY_INFORMATION)
	if control&windows.SE_DACL_PROTECTED != 0 {
		information |= windows.PROTECTED_DACL_SECURITY_INFORMATION
	} else {
		information |= windows.UNPROTECTED_DACL_SECURITY_INFORMATION
	}
	if control&windows.SE_DACL_AUTO_INHERITED != 0 {
		// The kernel keeps AUTO_INHERITED only if the caller also sets AUTO_INHERIT_REQ.
		if err := descriptor.SetControl(windows.SE_DACL_AUTO_INHERIT_REQ,
			windows.SE_DACL_AUTO_INHERIT_REQ); err != nil {
			return err
		}
	}
	h, err := openKey(path, windows.WRITE_OWNER|windows.WRITE_DAC)
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		// The killed installer ran as another user, or had only changed the owner.
		if err := takeOwnership(path); err != nil {
			return err
		}
		h, err = openKey(path, windows.WRITE_OWNER|windows.WRITE_DAC)
	}
	if err != nil {
		return err
	}
	defer h.Close()
	// One call for both, so that the old owner never has the new DACL. SeRestorePrivilege permits to set another
	// account as owner.
	if err := windows.SetKernelObjectSecurity(windows.Handle(h), information, descriptor); err != nil {
		return fmt.Errorf(`set owner and DACL of HKLM\%s: %w`, path, err)
	}
	now, err = keyDescriptor(path)
	if err != nil {
		return err
	}
	if withoutInheritFlags(now) != withoutInheritFlags(descriptor.String()) {
		return fmt.Errorf(`HKLM\%s has %s after the change`, path, now)
	}
	return nil
}

// withoutInheritFlags removes AR and AI from a DACL's flags: they describe the origin of the entries, not the access.
func withoutInheritFlags(sddl string) string {
	owner, dacl, found := strings.Cut(sddl, "D:")
	if !found {
		return sddl
	}
	flags, entries, found := strings.Cut(dacl, "(")
	if !found {
		return sddl
	}
	return owner + "D:" + strings.NewReplacer("AR", "", "AI", "").Replace(flags) + "(" + entries
}

// keyDescriptor returns owner and DACL of a key as SDDL.
func keyDescriptor(path string) (string, error) {
	h, err := openKey(path, windows.READ_CONTROL)
	if err != nil {
		return "", err
	}
	defer h.Close()
	// SE_KERNEL_OBJECT reads the stored descriptor, as SetKernelObjectSecurity writes it. SE_REGISTRY_KEY would
	// recompute inheritance when reading and writing.
	descriptor, err := windows.GetSecurityInfo(windows.Handle(h), windows.SE_KERNEL_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return "", fmt.Errorf(`read owner and DACL of HKLM\%s: %w`, path, err)
	}
	return descriptor.String(), nil
}

// takeOwnership needs SeTakeOwnershipPrivilege.
func takeOwnership(path string) error {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	descriptor, err := windows.NewSecurityDescriptor()
	if err != nil {
		return err
	}
	if err := descriptor.SetOwner(user.User.Sid, false); err != nil {
		return err
	}
	h, err := openKey(path, windows.WRITE_OWNER)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := windows.SetKernelObjectSecurity(windows.Handle(h), windows.OWNER_SECURITY_INFORMATION,
		descriptor); err != nil {
		return fmt.Errorf(`take ownership of HKLM\%s: %w`, path, err)
	}
	return nil
}

// grantSelf adds an entry for this process's user to the DACL of a key that it owns. The entry is not inheritable, so
// keys below are unchanged.
func grantSelf(path, sddl string) error {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	before, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return err
	}
	old, _, err := before.DACL()
	if err != nil {
		return fmt.Errorf(`the DACL of HKLM\%s: %w`, path, err)
	}
	acl, err := windows.ACLFromEntries([]windows.EXPLICIT_ACCESS{{
		AccessPermissions: registry.ALL_ACCESS,
		AccessMode:        windows.GRANT_ACCESS,
		Inheritance:       windows.NO_INHERITANCE,
		Trustee: windows.TRUSTEE{
			TrusteeForm:  windows.TRUSTEE_IS_SID,
			TrusteeType:  windows.TRUSTEE_IS_USER,
			TrusteeValue: windows.TrusteeValueFromSID(user.User.Sid),
		},
	}}, old)
	if err != nil {
		return err
	}
	descriptor, err := windows.NewSecurityDescriptor()
	if err != nil {
		return err
	}
	if err := descriptor.SetDACL(acl, true, false); err != nil {
		return err
	}
	h, err := openKey(path, windows.WRITE_DAC)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := windows.SetKernelObjectSecurity(windows.Handle(h), windows.DACL_SECURITY_INFORMATION,
		descriptor); err != nil {
		return fmt.Errorf(`change the DACL of HKLM\%s: %w`, path, err)
	}
	return nil
}

func openKey(path string, access uint32) (registry.Key, error) {
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, path, access|registry.WOW64_64KEY)
	if err != nil {
		return 0, fmt.Errorf(`open HKLM\%s: %w`, path, err)
	}
	return h, nil
}

// recordJournal flushes the record to disk before the first change: the journal and COMClasses are in two hives, which
// Windows writes at different times.
func (c *Config) recordJournal(path, sddl string) error {
	h, _, err := registry.CreateKey(registry.LOCAL_MACHINE, c.Journal, registry.WRITE|registry.WOW64_64KEY)
	if err != nil {
		return fmt.Errorf(`create HKLM\%s: %w`, c.Journal, err)
	}
	defer h.Close()
	if err := h.SetStringValue(path, sddl); err != nil {
		return fmt.Errorf(`write HKLM\%s: %w`, c.Journal, err)
	}
	if status, _, _ := procRegFlushKey.Call(uintptr(h)); status != 0 {
		return fmt.Errorf(`flush HKLM\%s: %w`, c.Journal, windows.Errno(status))
	}
	return nil
}

var procRegFlushKey = windows.NewLazySystemDLL("advapi32.dll").NewProc("RegFlushKey")

func (c *Config) journalEntries() ([]string, error) {
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, c.Journal, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf(`read HKLM\%s: %w`, c.Journal, err)
	}
	defer h.Close()
	names, err := h.ReadValueNames(0)
	if err != nil {
		return nil, fmt.Errorf(`read HKLM\%s: %w`, c.Journal, err)
	}
	return names, nil
}

func (c *Config) dropJournal(path string) error {
	h, err := openKey(c.Journal, registry.SET_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.DeleteValue(path); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fmt.Errorf(`delete value %q of HKLM\%s: %w`, path, c.Journal, err)
	}
	return nil
}

// removeJournalKey removes the journal, and the key above it if that is empty.
func (c *Config) removeJournalKey() error {
	if err := deleteTree(c.Journal); err != nil {
		return err
	}
	parent := c.Journal[:strings.LastIndexByte(c.Journal, '\\')]
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, parent, registry.READ|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf(`read HKLM\%s: %w`, parent, err)
	}
	info, err := h.Stat()
	h.Close()
	if err != nil || info.SubKeyCount > 0 || info.ValueCount > 0 {
		return err
	}
	return deleteTree(parent)
}
