package main

import (
	"archive/tar"
	"encoding/base64"
	"encoding/binary"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// What a Windows layer looks like is in moby/buildkit, util/winlayers, which writes such layers on Linux, and in
// microsoft/hcsshim, pkg/ociwclayer, and microsoft/go-winio, backuptar, which read them on a node.

// windowsBase makes the layer that the Windows image stands on. A node's first layer goes through ProcessBaseLayer, which
// wants these five hives; up to Windows Server 2022 it took empty files for them, from 2025 on it wants hives. A
// HostProcess container uses nothing of a base. Microsoft's has these files, a license, and no directory Hives.
// (microsoft/windows-host-process-containers-base-image, New-HostProcessBaseImage.ps1; microsoft/hcsshim, baseLayerWriter)
func windowsBase() (v1.Layer, error) {
	var files []file
	for _, name := range []string{"DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM"} {
		files = append(files, file{"Files/Windows/System32/config/" + name, hive(name)})
	}
	return layer(files, windowsHeader)
}

// windowsLayer makes a layer above the base. It must have the directory Hives, though it changes no hive.
func windowsLayer(files []file) (v1.Layer, error) {
	var below []file
	for _, f := range files {
		below = append(below, file{"Files/" + f.name, f.data})
	}
	return layer(below, windowsHeader, "Hives")
}

func windowsHeader(h *tar.Header) {
	h.Format = tar.FormatPAX
	// Without these two records a node takes times from before 1970, or the time at which it unpacks.
	h.AccessTime, h.ChangeTime = h.ModTime, h.ModTime
	h.PAXRecords = map[string]string{"LIBARCHIVE.creationtime": fmt.Sprintf("%d.0", h.ModTime.Unix())}

	// The mode also holds the type, as backuptar writes it; the attributes are FILE_ATTRIBUTE_DIRECTORY, or
	// FILE_ATTRIBUTE_ARCHIVE, which every new file has.
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
	// The two top directories are the layer's own and not in the container.
	if h.Name != "Files/" && h.Name != "Hives/" {
		h.PAXRecords["MSWINDOWS.rawsd"] = base64.StdEncoding.EncodeToString(sd)
	}
}

// securityDescriptor returns O:BAG:SYD:(A;FLAGS;ALL;;;BA)(A;FLAGS;ALL;;;SY)(A;FLAGS;READ;;;BU) in self-relative form
// ([MS-DTYP] 2.4.6). The owner matters: an owner may rewrite the DACL, and these files run as SYSTEM on the host, so
// "no DACL, owner BUILTIN\Users", which other tools give to files of Windows images, would let any user who can reach them
// replace them.
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
