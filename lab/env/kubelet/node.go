// Package kubelet joins nodes to the lab's control plane and runs the pods that are bound to them: "Windows nodes", on
// which containers are programs under Wine, and Linux nodes, on which they are processes in a chroot. It speaks to the API
// server as a kubelet does, with a node's own identity and rights, and keeps a kubelet's promises about images, volumes,
// tokens, probes, restarts, grace, logs and exec, so that charts are installed, upgraded and removed as on a real cluster.
//
// It is not a container runtime: nothing is isolated but the view of files and, on Linux nodes, the network; resources are
// neither measured nor limited. A pod of a Linux node has an address that this machine reaches, and itself reaches the API
// server and nothing else: no other pod, no Service, no DNS server. A pod of a Windows node, or with hostNetwork, has the
// machine's network, and says that its address is 127.0.0.1. It has no static pods, no ephemeral containers, no
// volumes from drivers, no post-start and no HTTP hooks, no gRPC probes, no readiness gates. What waits 10 s to 5 min between
// attempts in a real kubelet waits 1 s to 30 s here. Anybody on the machine may call a node's port for logs and exec: it
// asks for no client certificate.
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

// Options say what a node is.
type Options struct {
	Name   string
	OS     string // windows or linux
	Labels map[string]string
	Taints []corev1.Taint
	Config *rest.Config // of system:node:<name>, whom the Node authorizer and NodeRestriction know
	Dir    string       // images, pods, logs; kept over a restart
	// Mirror is a registry on loopback, host:port, that images of all other registries are pulled from, as by a mirror in
	// containerd's configuration. Without it such images are not pulled.
	Mirror string

	Wine    *wine.Node // Windows nodes only; booted if it does not run
	Sandbox Sandbox    // Containerd17 if empty
	// CCG stands for ccg.exe: it is called with a credential spec before a container that has one starts. Its error is what
	// the pod shows. Without it, no container with a credential spec starts.
	CCG func(ctx context.Context, credentialSpec []byte) error
	// ResolvConf is a file that HostProcess containers have at /etc/resolv.conf, where Wine looks for the DNS server. It is
	// asked for at every start of a container; "" leaves them the machine's.
	ResolvConf func() string
}

// Node is a node that was started. Its object in the API server stays when it stops.
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

	ctx    context.Context // of everything that calls the API server
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	pods     map[types.UID]*pod
	networks map[*netns.Namespace]bool // of the pods that run
	isCut    bool
	stopped  bool

	killed atomic.Bool // nothing is said any more
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
	n := &Node{o: o, pods: map[types.UID]*pod{}, networks: map[*netns.Namespace]bool{}, images: &images{dir: filepath.Join(o.Dir, "images"), os: o.OS, mirror: o.Mirror, refs: map[string]*image{}}}
	switch o.OS {
	case "linux":
		n.runtime = &chroot{containers}
	case "windows":
		if o.Wine == nil {
			return nil, fmt.Errorf("node %s is a Windows node and has no Wine node", o.Name)
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
		return nil, fmt.Errorf("node %s has the operating system %q, which is neither windows nor linux", o.Name, o.OS)
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

// throughGate is a client that reaches the API server through a gate of its own.
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
	// The API server's certificate has the gate's address too.
	config.Host = "https://" + net.JoinHostPort(loopback, strconv.Itoa(g.port()))
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		g.close()
	}
	return client, g, err
}

// Name is the node's name.
func (n *Node) Name() string { return n.o.Name }

// Stop shuts the node down in order: its pods' containers are ended with grace, and the API server learns that the node is
// not ready. Wine's session ends too. The pods' objects stay, and run anew when a node of the same name and Dir starts.
func (n *Node) Stop() {
	if !n.stop() {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
	_ = n.registration().status(ctx, corev1.ConditionFalse, "node is shutting down") // it may be cut off
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

// Kill is a power failure: nothing is told to anybody, and every process of the node is gone.
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

// CutOff cuts the network between the API server on one side, the kubelet and the pods on the other: connections that go
// through the kubelet are closed and new ones hang, and what is sent to a pod's own address is lost. Containers go on, and the
// kubelet reaches them.
func (n *Node) CutOff() { n.cut(true) }

// Reconnect ends a CutOff.
func (n *Node) Reconnect() { n.cut(false) }

// KillContainer ends a container's processes at once and has its status say the reason, with exit code 137: what the
// kernel does to a container that is out of memory, if the reason is OOMKilled.
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
		OperatingSystem: n.o.OS, Architecture: "amd64", KubeletVersion: kubernetesVersion,
		OSImage: "Debian GNU/Linux 12 (bookworm)", KernelVersion: "6.1.0", ContainerRuntimeVersion: "containerd://1.7.27",
	}
	labels := map[string]string{corev1.LabelOSStable: n.o.OS, corev1.LabelArchStable: "amd64", corev1.LabelHostname: n.o.Name}
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
	return &registration{client: n.client, name: n.o.Name, labels: labels, taints: n.o.Taints, info: info, port: int32(n.inbound.port())}
}

const kubernetesVersion = "v1.37.2"

// registration keeps a Node object and its Lease.
type registration struct {
	client kubernetes.Interface
	name   string
	labels map[string]string
	taints []corev1.Taint
	info   corev1.NodeSystemInfo
	port   int32 // of logs and exec
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
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	reason := "KubeletReady"
	if ready != corev1.ConditionTrue {
		reason = "KubeletNotReady"
	}
	now := metav1.Now()
	return corev1.NodeStatus{
		Capacity: resources, Allocatable: resources, NodeInfo: r.info,
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: loopback}, {Type: corev1.NodeHostName, Address: r.name}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: r.port}},
		Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now}},
	}
}

// status writes the node's status. The time of the last transition is as good as that of the last start.
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
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &r.name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}
		if _, err = leases.Create(ctx, lease, metav1.CreateOptions{}); apierrors.IsNotFound(err) {
			return nil // the namespace of a control plane that just started; the next renewal finds it
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
		_ = err // the next beat tries again, and the control plane notices if none succeeds
	}
}

// watchPods calls sync with each pod of the node as it is and becomes, and vanished for those whose objects are gone.
// client-go's informer would do, but may wait 30 s after an outage.
func watchPods(ctx context.Context, client kubernetes.Interface, node string, sync func(*corev1.Pod), vanished func(types.UID)) {
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
