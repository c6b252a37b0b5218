// Package kubelet adds nodes to the lab's control plane and runs the pods that are bound to them. On "Windows nodes"
// containers are programs under Wine, on Linux nodes processes in a chroot. The package uses the API server like a
// kubelet, with a node's identity and permissions. It implements a kubelet's images, volumes, tokens, probes, restarts,
// grace periods, logs and exec, so that charts can be installed, upgraded and uninstalled as on a real cluster.
//
// It is not a container runtime: it isolates only files and, on Linux nodes, the network, and it neither measures nor
// limits resources. This machine can reach the address of a pod on a Linux node. The pod can reach only the API server:
// no other pod, no Service and no DNS server. A pod on a Windows node, or with hostNetwork, uses the machine's network
// and has the address 127.0.0.1. Static pods, ephemeral containers, volumes from drivers, post-start hooks, HTTP hooks,
// gRPC probes and readiness gates are not supported. Retries wait for 1 s to 30 s, not 10 s to 5 min as in a real
// kubelet. A node's port for logs and exec requires no client certificate: every process on the machine can use it.
package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/internal/netns"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
)

// Options configure a node.
type Options struct {
	Name   string
	OS     string // windows or linux
	Labels map[string]string
	Taints []corev1.Taint
	Config *rest.Config // of the user system:node:<name>, for the Node authorizer and NodeRestriction
	Dir    string       // images, pods, logs; kept across restarts
	// Mirror is a registry on loopback, host:port, from which images of other registries are pulled, like a mirror in
	// containerd's configuration. Without it, such images cannot be pulled.
	Mirror string

	Wine    *wine.Node // Windows nodes only; booted if necessary
	Sandbox Sandbox    // default: Containerd17
	// CCG emulates ccg.exe. It is called with the credential spec before a container that uses a gMSA starts. The pod's
	// status shows its error. Without CCG, no such container starts.
	CCG func(ctx context.Context, credentialSpec []byte) error
	// ResolvConf returns the file that HostProcess containers see as /etc/resolv.conf, from which Wine reads the DNS
	// server. It is called at every start of a container; "" selects the machine's file.
	ResolvConf func() string
}

// Node is a started node. Its API object remains when it stops.
type Node struct {
	o       Options
	client  kubernetes.Interface
	api     *gate // to the API server
	inbound *gate // from it
	server  *server
	images  *images
	runtime runtime
	events  record.EventRecorder
	stopLog func()

	ctx    context.Context // for all API requests
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	pods     map[types.UID]*pod
	networks map[*netns.Namespace]bool // of the running pods
	isCut    bool
	stopped  bool

	killed atomic.Bool // no further events
}

// Start registers the node, or takes over its object, and runs its pods until Stop or Kill.
func Start(ctx context.Context, o Options) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab's nodes mount volumes, which needs root; run the lab as root")
	}
	if o.Sandbox == "" {
		o.Sandbox = Containerd17
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	containers := filepath.Join(o.Dir, "containers")
	n := &Node{
		o:        o,
		pods:     map[types.UID]*pod{},
		networks: map[*netns.Namespace]bool{},
		images: &images{
			dir:    filepath.Join(o.Dir, "images"),
			os:     o.OS,
			mirror: o.Mirror,
			refs:   map[string]*image{},
		},
	}
	switch o.OS {
	case "linux":
		n.runtime = &chroot{containers}
	case "windows":
		if o.Wine == nil {
			return nil, fmt.Errorf("node %s: a Windows node needs Options.Wine", o.Name)
		}
		if err := o.Wine.Boot(ctx); err != nil {
			return nil, err
		}
		r := &hostProcess{dir: containers, node: o.Wine, sandbox: o.Sandbox, resolvConf: o.ResolvConf}
		if err := r.clearAfterPowerFailure(); err != nil {
			return nil, err
		}
		n.runtime = r
	default:
		return nil, fmt.Errorf("node %s: operating system %q is neither windows nor linux", o.Name, o.OS)
	}
	if err := os.RemoveAll(containers); err != nil {
		return nil, err
	}
	for _, dir := range []string{containers, filepath.Join(o.Dir, "pods"), n.images.dir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.client, n.api, err = throughGate(o.Config); err != nil {
		return nil, err
	}
	if n.server, err = newServer(n); err != nil {
		return nil, err
	}
	if n.inbound, err = newGate(n.server.address()); err != nil {
		return nil, err
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: n.client.CoreV1().Events("")})
	n.stopLog = broadcaster.Shutdown
	n.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: o.Name})

	r := n.registration()
	if err := r.register(ctx); err != nil {
		return nil, fmt.Errorf("registering node %s: %w", o.Name, err)
	}
	n.wg.Go(func() { r.heartbeat(n.ctx) })
	n.wg.Go(func() { watchPods(n.ctx, n.client, o.Name, n.sync, n.vanished) })
	return n, nil
}

// throughGate creates a client that reaches the API server through a new gate.
func throughGate(config *rest.Config) (kubernetes.Interface, *gate, error) {
	server, err := url.Parse(config.Host)
	if err != nil {
		return nil, nil, err
	}
	g, err := newGate(server.Host)
	if err != nil {
		return nil, nil, err
	}
	config = rest.CopyConfig(config)
	// The API server's certificate is also valid for the gate's address.
	config.Host = "https://" + net.JoinHostPort(loopback, strconv.Itoa(g.port()))
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		g.close()
	}
	return client, g, err
}

func (n *Node) Name() string { return n.o.Name }

// Stop shuts the node down in order: containers exit within their grace period, the node becomes NotReady, and Wine's
// session ends. The pods' objects remain; the pods start again when a node with the same name and Dir starts.
func (n *Node) Stop() {
	if !n.stop() {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
	_ = n.registration().status(ctx, corev1.ConditionFalse, "node is shutting down") // fails if the node is cut off
	cancel()
	var wg sync.WaitGroup
	for _, p := range n.all() {
		wg.Go(func() {
			p.stop(p.grace())
			<-p.ended
			p.lastStatus(2 * time.Second)
		})
	}
	wg.Wait()
	n.close()
	if n.o.Wine != nil {
		n.o.Wine.Stop()
	}
}

// Kill emulates a power failure: every process of the node ends, and the API server is not informed.
func (n *Node) Kill() {
	if !n.stop() {
		return
	}
	n.killed.Store(true)
	n.api.close()
	n.inbound.close()
	pods := n.all()
	for _, p := range pods {
		p.kill()
	}
	n.cancel()
	for _, p := range pods {
		<-p.ended
	}
	n.close()
	if n.o.Wine != nil {
		n.o.Wine.Kill()
	}
}

func (n *Node) stop() (first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	first = !n.stopped
	n.stopped = true
	return first
}

func (n *Node) close() {
	n.cancel()
	n.wg.Wait()
	if n.stopLog != nil {
		n.stopLog()
	}
	if n.server != nil {
		n.server.close()
	}
	for _, g := range []*gate{n.api, n.inbound} {
		if g != nil {
			g.close()
		}
	}
}

// CutOff cuts the network between the API server and the node. Connections through the kubelet are closed, new ones
// hang, and packets to pods' addresses are dropped. Containers continue, and the kubelet can reach them.
func (n *Node) CutOff() { n.cut(true) }

// Reconnect reverses CutOff.
func (n *Node) Reconnect() { n.cut(false) }

// KillContainer kills a container's processes. The status shows the reason and exit code 137, as for a container that
// the kernel kills with the reason OOMKilled.
func (n *Node) KillContainer(pod types.NamespacedName, container string, reason string) error {
	c, err := n.container(pod.Namespace, pod.Name, container)
	if err != nil {
		return err
	}
	r := c.currentRun()
	if r == nil {
		return fmt.Errorf("container %s of pod %s is not running", container, pod)
	}
	c.pod.mu.Lock()
	c.killReason = reason
	c.pod.mu.Unlock()
	return r.process.Signal(syscall.SIGKILL)
}

func (n *Node) all() []*pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	var pods []*pod
	for _, p := range n.pods {
		pods = append(pods, p)
	}
	return pods
}

func (n *Node) container(namespace, name, container string) (*container, error) {
	for _, p := range n.all() {
		if p.namespace != namespace || p.name != name {
			continue
		}
		for _, c := range slices.Concat(p.inits, p.containers) {
			if c.spec.Name == container {
				return c, nil
			}
		}
		return nil, fmt.Errorf("pod %s/%s has no container %s", namespace, name, container)
	}
	return nil, fmt.Errorf("pod %s/%s is not on node %s", namespace, name, n.o.Name)
}

func (n *Node) registration() *registration {
	info := corev1.NodeSystemInfo{
		OperatingSystem:         n.o.OS,
		Architecture:            "amd64",
		KubeletVersion:          kubernetesVersion,
		OSImage:                 "Debian GNU/Linux 12 (bookworm)",
		KernelVersion:           "6.1.0",
		ContainerRuntimeVersion: "containerd://1.7.27",
	}
	labels := map[string]string{
		corev1.LabelOSStable:   n.o.OS,
		corev1.LabelArchStable: "amd64",
		corev1.LabelHostname:   n.o.Name,
	}
	if n.o.OS == "windows" {
		info.OSImage, info.KernelVersion = "Windows Server 2022 Datacenter (Wine)", "10.0.20348.2340"
		labels[corev1.LabelWindowsBuild] = "10.0.20348"
	}
	if n.o.Sandbox == Containerd16 {
		info.ContainerRuntimeVersion = "containerd://1.6.38"
	}
	for name, value := range n.o.Labels {
		labels[name] = value
	}
	return &registration{
		client: n.client,
		name:   n.o.Name,
		labels: labels,
		taints: n.o.Taints,
		info:   info,
		port:   int32(n.inbound.port()),
	}
}

const kubernetesVersion = "v1.37.2"

// registration maintains a Node object and its Lease.
type registration struct {
	client kubernetes.Interface
	name   string
	labels map[string]string
	taints []corev1.Taint
	info   corev1.NodeSystemInfo
	port   int32 // for logs and exec
}

func (r *registration) register(ctx context.Context) error {
	nodes := r.client.CoreV1().Nodes()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: r.name, Labels: r.labels},
		Spec:       corev1.NodeSpec{Taints: r.taints},
		Status:     r.nodeStatus(corev1.ConditionTrue, "kubelet is posting ready status"),
	}
	_, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		patch, jsonErr := json.Marshal(map[string]any{"metadata": map[string]any{"labels": r.labels}})
		if jsonErr != nil {
			return jsonErr
		}
		_, err = nodes.Patch(ctx, r.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return err
	}
	if err := r.status(ctx, corev1.ConditionTrue, "kubelet is posting ready status"); err != nil {
		return err
	}
	return r.renew(ctx)
}

func (r *registration) nodeStatus(ready corev1.ConditionStatus, message string) corev1.NodeStatus {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("64"),
		corev1.ResourceMemory:           resource.MustParse("256Gi"),
		corev1.ResourcePods:             resource.MustParse("110"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	reason := "KubeletReady"
	if ready != corev1.ConditionTrue {
		reason = "KubeletNotReady"
	}
	now := metav1.Now()
	return corev1.NodeStatus{
		Capacity:    resources,
		Allocatable: resources,
		NodeInfo:    r.info,
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: loopback},
			{Type: corev1.NodeHostName, Address: r.name},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: r.port}},
		Conditions: []corev1.NodeCondition{{
			Type:               corev1.NodeReady,
			Status:             ready,
			Reason:             reason,
			Message:            message,
			LastHeartbeatTime:  now,
			LastTransitionTime: now,
		}},
	}
}

// status writes the node's status. LastTransitionTime is always the time of the write: nothing in the lab reads it.
func (r *registration) status(ctx context.Context, ready corev1.ConditionStatus, message string) error {
	patch, err := json.Marshal(map[string]any{"status": r.nodeStatus(ready, message)})
	if err != nil {
		return err
	}
	_, err = r.client.CoreV1().Nodes().PatchStatus(ctx, r.name, patch)
	return err
}

func (r *registration) renew(ctx context.Context) error {
	leases := r.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds, now := int32(40), metav1.NowMicro()
	lease, err := leases.Get(ctx, r.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: r.name},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity:       &r.name,
				LeaseDurationSeconds: &seconds,
				RenewTime:            &now,
			},
		}
		if _, err = leases.Create(ctx, lease, metav1.CreateOptions{}); apierrors.IsNotFound(err) {
			return nil // the control plane has just started; the namespace exists at the next renewal
		}
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

// heartbeat renews the lease every 10 s, and the status every minute.
func (r *registration) heartbeat(ctx context.Context) {
	for beat := 1; sleep(ctx, 10*time.Second); beat++ {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := r.renew(call)
		if err == nil && beat%6 == 0 {
			err = r.status(call, corev1.ConditionTrue, "kubelet is posting ready status")
		}
		cancel()
		_ = err // the next heartbeat tries again; without success, the node becomes NotReady
	}
}

// watchPods calls sync with the current state and each change of the node's pods, and vanished for deleted objects.
// client-go's informer can wait 30 s after an outage.
func watchPods(ctx context.Context, client kubernetes.Interface, node string, sync func(*corev1.Pod),
	vanished func(types.UID)) {
	selector := fields.OneTermEqualSelector("spec.nodeName", node).String()
	pods := client.CoreV1().Pods(metav1.NamespaceAll)
	known := map[types.UID]bool{}
	follow := func() error {
		list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			return err
		}
		listed := map[types.UID]bool{}
		for i := range list.Items {
			listed[list.Items[i].UID] = true
			known[list.Items[i].UID] = true
			sync(&list.Items[i])
		}
		for uid := range known {
			if !listed[uid] {
				delete(known, uid)
				vanished(uid)
			}
		}
		w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: selector, ResourceVersion: list.ResourceVersion})
		if err != nil {
			return err
		}
		defer w.Stop()
		for event := range w.ResultChan() {
			p, ok := event.Object.(*corev1.Pod)
			switch {
			case !ok:
				return apierrors.FromObject(event.Object)
			case event.Type == watch.Deleted:
				delete(known, p.UID)
				vanished(p.UID)
			default:
				known[p.UID] = true
				sync(p)
			}
		}
		return nil
	}
	for ctx.Err() == nil {
		if err := follow(); err != nil {
			sleep(ctx, time.Second)
		}
	}
}
