package kubelet

import (
	"context"
	"net"
	"strconv"

	"github.com/ccgrkc/ccgrkc/lab/internal/netns"
)

// hasNetwork reports whether the pod has its own address and ports. Pods of Windows nodes use the machine's, because a
// Wine session has one network.
func (p *pod) hasNetwork() bool { return p.node.o.OS == "linux" && !p.latest().Spec.HostNetwork }

// joinNetwork creates the pod's network. The API server has the same address in it as on the node: the gate listens
// there too, on the same port, which is free in a new namespace.
func (p *pod) joinNetwork() (leave func(), _ error) {
	network, err := netns.New()
	if err != nil {
		return nil, err
	}
	api, err := network.Listen(net.JoinHostPort(loopback, strconv.Itoa(p.node.api.port())))
	if err == nil {
		err = p.node.addNetwork(network)
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
		p.node.removeNetwork(network)
		api.Close()
		network.Close()
	}, nil
}

func (p *pod) ip() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

// dial connects to the pod's own address from within its network, which a CutOff does not affect, and to other
// addresses from the node.
func (p *pod) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if host, _, err := net.SplitHostPort(address); err == nil && p.network != nil && host == p.ip() {
		return p.network.DialContext(ctx, network, address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// addNetwork makes the node's CutOff apply to a pod's network.
func (n *Node) addNetwork(network *netns.Namespace) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.networks[network] = true
	if !n.isCut {
		return nil
	}
	return network.Cut(true)
}

func (n *Node) removeNetwork(network *netns.Namespace) {
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
			panic(err) // without the cut, the test would verify nothing
		}
	}
}
