package installer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// description marks a CLSID key as this project's own.
const description = "CCGRKC CCG plugin"

// launchDescriptor is the AppID's LaunchPermission and AccessPermission. Mask 0x0B is COM_RIGHTS_EXECUTE (1),
// EXECUTE_LOCAL (2) and ACTIVATE_LOCAL (8): ccg.exe runs as SYSTEM or as a service. No other process can request a
// password, and no other machine.
const launchDescriptor = "O:BAG:BAD:(A;;0xb;;;SY)(A;;0xb;;;SU)"

// value is one expected registry value.
type value struct {
	name string // "" is the key's default value
	kind uint32
	data []byte
	show string // data for people
}

// key is one expected registry key with exactly these values and subkeys.
type key struct {
	path    string
	values  []value
	subkeys []string
}

func text(name, data string) value {
	return value{name: name, kind: registry.SZ, data: utf16Bytes(data), show: fmt.Sprintf("%q", data)}
}

func number(name string, n uint32) value {
	data := binary.LittleEndian.AppendUint32(nil, n)
	return value{name: name, kind: registry.DWORD, data: data, show: fmt.Sprint(n)}
}

func descriptor(name, sddl string) (value, error) {
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return value{}, fmt.Errorf("security descriptor %q: %w", sddl, err)
	}
	// SecurityDescriptorFromString returns the self-relative form, which is the one that COM reads.
	data := bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(sd)), sd.Length()))
	return value{name: name, kind: registry.BINARY, data: data, show: sddl}, nil
}

// wanted lists the registration in the order in which it is written: referenced keys come first, and the key that
// ccg.exe reads comes last.
func (c *Config) wanted() ([]key, error) {
	account, err := c.RunAs.account()
	if err != nil {
		return nil, err
	}
	launch, err1 := descriptor("LaunchPermission", launchDescriptor)
	access, err2 := descriptor("AccessPermission", launchDescriptor)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	appID := []value{text("", description), text("DllSurrogate", ""), launch, access}
	if account != "" {
		appID = append(appID, text("RunAs", account))
	}
	return []key{
		{path: c.EventSource, values: []value{text("EventMessageFile", c.dllPath()), number("TypesSupported", 7)}},
		{path: c.appIDKey(), values: appID},
		{
			path:    c.clsidKey(),
			values:  []value{text("", description), text("AppID", CLSID)},
			subkeys: []string{"InprocServer32"},
		},
		{
			path:   c.clsidKey() + `\InprocServer32`,
			values: []value{text("", c.dllPath()), text("ThreadingModel", "Both")},
		},
		{path: c.comClassesKey(), values: []value{text("", "")}},
	}, nil
}

func (c *Config) wantedKey(path string) (key, error) {
	wanted, err := c.wanted()
	if err != nil {
		return key{}, err
	}
	for _, k := range wanted {
		if k.path == path {
			return k, nil
		}
	}
	return key{}, fmt.Errorf(`HKLM\%s is not a key of the registration`, path)
}

// compare reads a key and reports the state of each value. Unexpected values and keys are drift too: LocalServer32 or
// TreatAs below the CLSID would redirect ccg.exe to another program.
func (k key) compare() ([]Row, error) {
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, k.path, registry.READ|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		var rows []Row
		for _, v := range k.values {
			rows = append(rows, Row{
				Object:   k.path,
				Value:    v.name,
				Expected: v.show,
				Actual:   "no such key",
				State:    Missing,
			})
		}
		return rows, nil
	}
	if err != nil {
		return nil, fmt.Errorf(`read HKLM\%s: %w`, k.path, err)
	}
	defer h.Close()
	var rows []Row
	for _, v := range k.values {
		actual, err := readValue(h, v.name)
		if err != nil {
			return nil, fmt.Errorf(`read value %q of HKLM\%s: %w`, v.name, k.path, err)
		}
		row := Row{Object: k.path, Value: v.name, Expected: v.show, Actual: actual.show, State: OK}
		if actual.kind != v.kind || !bytes.Equal(actual.data, v.data) {
			row.State = Drift // also if the value is missing in an existing key
		}
		rows = append(rows, row)
	}
	values, subkeys, err := k.unexpected(h)
	if err != nil {
		return nil, err
	}
	for _, name := range values {
		actual, err := readValue(h, name)
		if err != nil {
			return nil, fmt.Errorf(`read value %q of HKLM\%s: %w`, name, k.path, err)
		}
		rows = append(rows, Row{
			Object:   k.path,
			Value:    name,
			Expected: "no such value",
			Actual:   actual.show,
			State:    Drift,
		})
	}
	for _, name := range subkeys {
		rows = append(rows, Row{Object: k.path + `\` + name, Expected: "no such key", Actual: "a key", State: Drift})
	}
	return rows, nil
}

// unexpected lists the values and subkeys that should not exist. Names are compared without case, as in the registry.
func (k key) unexpected(h registry.Key) (values, subkeys []string, err error) {
	values, err1 := h.ReadValueNames(0)
	subkeys, err2 := h.ReadSubKeyNames(0)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, fmt.Errorf(`list HKLM\%s: %w`, k.path, err)
	}
	values = slices.DeleteFunc(values, func(name string) bool {
		return slices.ContainsFunc(k.values, func(v value) bool { return strings.EqualFold(v.name, name) })
	})
	subkeys = slices.DeleteFunc(subkeys, func(name string) bool {
		return slices.ContainsFunc(k.subkeys, func(s string) bool { return strings.EqualFold(s, name) })
	})
	return values, subkeys, nil
}

// write creates or corrects the key. For an existing key, it needs no access to the parent.
func (k key) write() error {
	h, err := openKey(k.path, registry.READ|registry.WRITE)
	if errors.Is(err, registry.ErrNotExist) {
		h, _, err = registry.CreateKey(registry.LOCAL_MACHINE, k.path,
			registry.READ|registry.WRITE|registry.WOW64_64KEY)
	}
	if err != nil {
		return fmt.Errorf(`create HKLM\%s: %w`, k.path, err)
	}
	defer h.Close()
	return k.fill(h)
}

// fill writes only differences, so that a repair does not notify its own watch.
func (k key) fill(h registry.Key) error {
	values, subkeys, err := k.unexpected(h)
	if err != nil {
		return err
	}
	for _, name := range values {
		if err := h.DeleteValue(name); err != nil {
			return fmt.Errorf(`delete value %q of HKLM\%s: %w`, name, k.path, err)
		}
	}
	for _, name := range subkeys {
		if err := deleteTree(k.path + `\` + name); err != nil {
			return err
		}
	}
	for _, v := range k.values {
		actual, err := readValue(h, v.name)
		if err == nil && actual.kind == v.kind && bytes.Equal(actual.data, v.data) {
			continue
		}
		if err := writeValue(h, v); err != nil {
			return fmt.Errorf(`write value %q of HKLM\%s: %w`, v.name, k.path, err)
		}
	}
	return nil
}

// readValue reads a value of any type. A missing one has the type NONE and no data.
func readValue(h registry.Key, name string) (value, error) {
	buffer := make([]byte, 512)
	for {
		n, kind, err := h.GetValue(name, buffer)
		if errors.Is(err, registry.ErrNotExist) {
			return value{name: name, kind: registry.NONE, show: "no such value"}, nil
		}
		if errors.Is(err, registry.ErrShortBuffer) {
			buffer = make([]byte, n)
			continue
		}
		if err != nil {
			return value{}, err
		}
		v := value{name: name, kind: kind, data: buffer[:n]}
		switch {
		case (kind == registry.SZ || kind == registry.EXPAND_SZ) && n%2 == 0:
			v.show = fmt.Sprintf("%q", bytesText(v.data))
		case kind == registry.DWORD && n == 4:
			v.show = fmt.Sprint(binary.LittleEndian.Uint32(v.data))
		default:
			v.show = fmt.Sprintf("%d bytes of registry type %d", n, kind)
		}
		return v, nil
	}
}

// writeValue writes kind and data. x/sys has only one function for each type.
func writeValue(h registry.Key, v value) error {
	switch v.kind {
	case registry.SZ:
		return h.SetStringValue(v.name, bytesText(v.data))
	case registry.DWORD:
		return h.SetDWordValue(v.name, binary.LittleEndian.Uint32(v.data))
	}
	return h.SetBinaryValue(v.name, v.data)
}

func utf16Bytes(s string) []byte {
	var data []byte
	for _, unit := range windows.StringToUTF16(s) { // with the NUL, which is part of REG_SZ
		data = append(data, byte(unit), byte(unit>>8))
	}
	return data
}

func bytesText(data []byte) string {
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = uint16(data[2*i]) | uint16(data[2*i+1])<<8
	}
	return windows.UTF16ToString(units)
}

// readText returns a string value of a key, "" if either is missing or the type differs.
func readText(path, name string) string {
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return ""
	}
	defer h.Close()
	s, _, _ := h.GetStringValue(name)
	return s
}

func keyExists(path string) (bool, error) {
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf(`read HKLM\%s: %w`, path, err)
	}
	h.Close()
	return true, nil
}

// deleteTree removes a key and everything below it. It succeeds if the key does not exist.
func deleteTree(path string) error {
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.ENUMERATE_SUB_KEYS|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf(`read HKLM\%s: %w`, path, err)
	}
	subkeys, err := h.ReadSubKeyNames(0)
	h.Close()
	if err != nil {
		return fmt.Errorf(`list HKLM\%s: %w`, path, err)
	}
	for _, name := range subkeys {
		if err := deleteTree(path + `\` + name); err != nil {
			return err
		}
	}
	err = registry.DeleteKey(registry.LOCAL_MACHINE, path)
	if err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fmt.Errorf(`delete HKLM\%s: %w`, path, err)
	}
	return nil
}
