package main

import (
	"archive/tar"
	"encoding/base64"
	"encoding/binary"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Sources for the format of Windows layers: moby/buildkit, util/winlayers, which writes them on Linux;
// microsoft/hcsshim, pkg/ociwclayer, and microsoft/go-winio, backuptar, which read them on a node.

// windowsBase creates the base layer of the Windows image. A node processes its first layer with ProcessBaseLayer,
// which requires these five hives. Up to Windows Server 2022 it accepts empty files, since 2025 it requires hives. A
// HostProcess container uses nothing of its base. Microsoft's base has these files, a license, and no directory Hives.
// (microsoft/windows-host-process-containers-base-image, New-HostProcessBaseImage.ps1; microsoft/hcsshim,
// baseLayerWriter)
func windowsBase() (v1.Layer, error) {
	var files []file
	for _, name := range []string{"DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM"} {
		files = append(files, file{"Files/Windows/System32/config/" + name, hive(name)})
	}
	return layer(files, windowsHeader)
}

// windowsLayer creates a layer above the base. The directory Hives is required, even without changes.
func windowsLayer(files []file) (v1.Layer, error) {
	var below []file
	for _, f := range files {
		below = append(below, file{"Files/" + f.name, f.data})
	}
	return layer(below, windowsHeader, "Hives")
}

func windowsHeader(h *tar.Header) {
	h.Format = tar.FormatPAX
	// Without these two records, a node sets times before 1970, or the time of unpacking.
	h.AccessTime, h.ChangeTime = h.ModTime, h.ModTime
	h.PAXRecords = map[string]string{"LIBARCHIVE.creationtime": fmt.Sprintf("%d.0", h.ModTime.Unix())}

	// The mode includes the type, as backuptar writes it. The attributes are FILE_ATTRIBUTE_DIRECTORY, or
	// FILE_ATTRIBUTE_ARCHIVE, as for every new file.
	const fileAllAccess, fileReadExecute = 0x1F01FF, 0x1200A9
	const objectInherit, containerInherit = 0x01, 0x02
	var sd []byte
	if h.Typeflag == tar.TypeDir {
		h.Mode |= 0o040000
		h.PAXRecords["MSWINDOWS.fileattr"] = "16"
		sd = securityDescriptor(objectInherit|containerInherit, fileAllAccess, fileReadExecute)
	} else {
		h.Mode |= 0o100000
		h.PAXRecords["MSWINDOWS.fileattr"] = "32"
		sd = securityDescriptor(0, fileAllAccess, fileReadExecute)
	}
	// The two top directories are part of the layer format and not of the container.
	if h.Name != "Files/" && h.Name != "Hives/" {
		h.PAXRecords["MSWINDOWS.rawsd"] = base64.StdEncoding.EncodeToString(sd)
	}
}

// securityDescriptor returns O:BAG:SYD:(A;FLAGS;ALL;;;BA)(A;FLAGS;ALL;;;SY)(A;FLAGS;READ;;;BU) in self-relative form
// ([MS-DTYP] 2.4.6). An owner can change the DACL, and these files run as SYSTEM on the host. With no DACL and the
// owner BUILTIN\Users, which other tools set in Windows images, any user with access to the files could replace them.
func securityDescriptor(flags byte, all, read uint32) []byte {
	const administrators, users = 544, 545
	system := sid(18)
	owner := sid(32, administrators)

	var aces []byte
	for _, ace := range []struct {
		mask uint32
		sid  []byte
	}{{all, owner}, {all, system}, {read, sid(32, users)}} {
		aces = append(aces, 0, flags) // ACCESS_ALLOWED_ACE_TYPE
		aces = binary.LittleEndian.AppendUint16(aces, uint16(8+len(ace.sid)))
		aces = binary.LittleEndian.AppendUint32(aces, ace.mask)
		aces = append(aces, ace.sid...)
	}
	acl := []byte{2, 0} // ACL_REVISION
	acl = binary.LittleEndian.AppendUint16(acl, uint16(8+len(aces)))
	acl = binary.LittleEndian.AppendUint16(acl, 3)
	acl = append(append(acl, 0, 0), aces...)

	const header, daclPresent, selfRelative = 20, 0x0004, 0x8000
	sd := []byte{1, 0}
	sd = binary.LittleEndian.AppendUint16(sd, daclPresent|selfRelative)
	sd = binary.LittleEndian.AppendUint32(sd, header)
	sd = binary.LittleEndian.AppendUint32(sd, uint32(header+len(owner)))
	sd = binary.LittleEndian.AppendUint32(sd, 0) // no SACL
	sd = binary.LittleEndian.AppendUint32(sd, uint32(header+len(owner)+len(system)))
	sd = append(sd, owner...)
	sd = append(sd, system...)
	return append(sd, acl...)
}

// sid returns S-1-5-subs in binary form ([MS-DTYP] 2.4.2.2).
func sid(subs ...uint32) []byte {
	s := []byte{1, byte(len(subs)), 0, 0, 0, 0, 0, 5}
	for _, sub := range subs {
		s = binary.LittleEndian.AppendUint32(s, sub)
	}
	return s
}
