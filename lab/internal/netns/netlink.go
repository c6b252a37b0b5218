package netns

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// This file implements the requests of rtnetlink(7) that a namespace needs. They apply to the thread's namespace.

var native = binary.NativeEndian

// createPair creates a veth(4) pair: name here, and peer in the namespace of a file descriptor.
func createPair(name, peer string, namespace uintptr) error {
	other := append(linkHeader(0, 0), attribute(unix.IFLA_IFNAME, []byte(peer+"\x00"))...)
	other = append(other, attribute(unix.IFLA_NET_NS_FD, native.AppendUint32(nil, uint32(namespace)))...)
	const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	info := attribute(unix.IFLA_INFO_KIND, []byte("veth"))
	info = append(info, attribute(unix.IFLA_INFO_DATA, attribute(vethInfoPeer, other))...)
	message := append(linkHeader(0, 0), attribute(unix.IFLA_IFNAME, []byte(name+"\x00"))...)
	message = append(message, attribute(unix.IFLA_LINKINFO, info)...)
	return request("creating the link "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, message)
}

func deleteLink(index int) error {
	return request("removing a link", unix.RTM_DELLINK, 0, linkHeader(index, 0))
}

func up(name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	return request("setting the link "+name+" up", unix.RTM_NEWLINK, 0, linkHeader(link.Index, unix.IFF_UP))
}

// addAddress sets an address of a /31 on a link. The kernel adds the route to the other address.
func addAddress(name string, address [4]byte) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	message := []byte{unix.AF_INET, 31, 0, unix.RT_SCOPE_UNIVERSE}
	message = native.AppendUint32(message, uint32(link.Index))
	message = append(message, attribute(unix.IFA_LOCAL, address[:])...)
	message = append(message, attribute(unix.IFA_ADDRESS, address[:])...)
	what := "setting the address of the link " + name
	return request(what, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, message)
}

// setLost sends packets for the address to an Ethernet address that does not exist, or, with false, restores ARP.
func setLost(link int, address [4]byte, lost bool) error {
	message := []byte{unix.AF_INET, 0, 0, 0}
	message = native.AppendUint32(message, uint32(link))
	state := uint16(unix.NUD_PERMANENT)
	if !lost {
		state = unix.NUD_NONE
	}
	message = append(native.AppendUint16(message, state), 0, 0) // no flags, no type
	message = append(message, attribute(unix.NDA_DST, address[:])...)
	if !lost {
		return request("deleting a neighbor", unix.RTM_DELNEIGH, 0, message)
	}
	message = append(message, attribute(unix.NDA_LLADDR, []byte{2, 0, 0, 0, 0, 1})...)
	return request("setting a neighbor", unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, message)
}

// linkHeader is a struct ifinfomsg that sets these flags.
func linkHeader(index int, flags uint32) []byte {
	b := []byte{unix.AF_UNSPEC, 0, 0, 0}
	b = native.AppendUint32(b, uint32(index))
	b = native.AppendUint32(b, flags)
	return native.AppendUint32(b, flags)
}

func attribute(kind uint16, value []byte) []byte {
	b := native.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(native.AppendUint16(b, kind), value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// request sends one message and waits for its acknowledgement.
func request(what string, kind, flags uint16, body []byte) error {
	fail := func(err error) error { return fmt.Errorf("%s: %w", what, err) }
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(socket)
	message := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	message = native.AppendUint16(message, kind)
	message = native.AppendUint16(message, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	message = append(message, make([]byte, 8)...) // sequence number and sender, unused: one message per socket
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Sendto(socket, append(message, body...), 0, kernel); err != nil {
		return fail(err)
	}
	answer := make([]byte, 8<<10)
	n, _, err := unix.Recvfrom(socket, answer, 0)
	if err != nil {
		return fail(err)
	}
	if n < unix.SizeofNlMsghdr+4 || native.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fail(fmt.Errorf("the kernel answered %x", answer[:n]))
	}
	if errno := -int32(native.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return fail(unix.Errno(errno))
	}
	return nil
}
