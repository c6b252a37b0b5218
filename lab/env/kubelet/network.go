package kubelet

import (
	"context"
	"net"
	"strconv"

	"github.com/ccgrkc/ccgrkc/lab/internal/netns"
)

// hasNetwork tells whether the pod has an address and ports of its own. Those of Windows nodes have the machine's: Wine's
// session has one network.
func (p *pod) hasNetwork() bool { return p.node.o.OS == "linux" && !p.latest().Spec.HostNetwork }

// joinNetwork makes the pod's network. Within, the API server is where it is for the node: the gate has a listener there, at
// its own port, which is free in a new namespace.
func (p *pod) joinNetwork() (leave func(), _ error) {
	network, err := netns.New()
	if err != nil {
		return nil, err
	}
	api, err := network.Listen(net.JoinHostPort(loopback, strconv.Itoa(p.node.api.port())))
	if err == nil {
		err = p.node.plug(network)
	}
	if err != nil {
		network.Close()
		return nil, err
	}
	go p.node.api.accept(api)
	p.mu.Lock()
	p.network, p.address = network, network.Address.String()
	p.mu.Unlock()
	p.touch()
	return func() {
		p.node.unplug(network)
		api.Close()
		network.Close()
	}, nil
}

func (p *pod) ip() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

// dial reaches the pod's own address from within its network, where a CutOff of the node is not felt, and others from the node.
func (p *pod) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if host, _, err := net.SplitHostPort(address); err == nil && p.network != nil && host == p.ip() {
		return p.network.DialContext(ctx, network, address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// plug has a pod's network share in the node's CutOff.
func (n *Node) plug(network *netns.Namespace) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.networks[network] = true
	if !n.isCut {
		return nil
	}
	return network.Cut(true)
}

func (n *Node) unplug(network *netns.Namespace) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.networks, network)
}

func (n *Node) cut(cut bool) {
	n.api.cut(cut)
	n.inbound.cut(cut)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isCut = cut
	for network := range n.networks {
		if err := network.Cut(cut); err != nil {
			panic(err) // a test that goes on would prove nothing
		}
	}
}
