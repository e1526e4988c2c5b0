// Command netpol enforces NetworkPolicies on one node of the development cluster.
//
// It runs kube-router's policy controller and nothing else of kube-router: no service proxy (kube-proxy does that),
// no routes and no BGP. The whole of kube-router cannot be built from the module proxy, because its BGP dependency is
// not to be had there; its policy controller can.
//
// What the controller does is done with iptables and ipset in the network namespace this command is started in, and
// for IPv4 only: a cluster that uses it must have IPv6 off in its nodes and pods.
//
// The kubeconfig's user needs: get nodes; list and watch pods, namespaces and networkpolicies.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/pkg/options"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Every wait has an end: a cluster that does not come up must say which part failed, not hang.
const (
	nodeWait      = 2 * time.Minute        // for the Node object and its address
	cacheWait     = time.Minute            // for the first lists of pods, namespaces and policies
	firstSyncWait = time.Minute            // for one whole sync without an error
	stopWait      = 10 * time.Second       // for a sync that is under way when we are told to stop
	requestWait   = 5 * time.Second        // for one question to the API server
	pollPause     = 500 * time.Millisecond // between two of them
	retryPause    = time.Second            // before the next sync after a failed one
)

type config struct {
	kubeconfig    string
	node          string
	serviceCIDR   string
	nodePortRange string
	syncPeriod    time.Duration
}

func main() {
	cfg, err := parseFlags()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netpol:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// Once the first signal has been seen, the second one ends us at once.
	context.AfterFunc(ctx, stop)

	err = run(ctx, cfg)
	klog.Flush()
	// Being told to stop during one of the waits is a clean end.
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "netpol:", err)
		os.Exit(1)
	}
}

func parseFlags() (config, error) {
	defaults := options.NewKubeRouterConfig()
	var c config
	flag.StringVar(&c.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server (needed)")
	flag.StringVar(&c.node, "node", "", "`name` of the Node whose pods are guarded (needed)")
	flag.StringVar(&c.serviceCIDR, "service-cidr", defaults.ClusterIPCIDR,
		"`range` of the services' cluster addresses")
	flag.StringVar(&c.nodePortRange, "nodeport-range", defaults.NodePortRange,
		"`range` of the node's ports that pods may reach whatever their policies say: "+
			"give one in which nothing listens, unless NodePort services are wanted")
	flag.DurationVar(&c.syncPeriod, "sync-period", defaults.IPTablesSyncPeriod,
		"`time` between two syncs when nothing changes; a change is always synced at once")
	verbosity := flag.Int("v", 0, "`level` of detail of the log; 1 shows each sync")
	flag.Parse()

	switch {
	case flag.NArg() > 0:
		return c, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case c.kubeconfig == "":
		return c, errors.New("-kubeconfig is missing")
	case c.node == "":
		return c, errors.New("-node is missing")
	case c.syncPeriod <= 0:
		return c, fmt.Errorf("-sync-period %s is not a positive time", c.syncPeriod)
	}
	// The two ranges are checked by the controller itself; the error names the option.
	return c, setUpLog(*verbosity)
}

// logErrors counts the lines that were logged as errors, by the controller or by anything else here.
// The controller reports a failed sync in no other way.
var logErrors errorCount

type errorCount struct{ atomic.Int64 }

func (c *errorCount) Write(line []byte) (int, error) {
	c.Add(1)
	return len(line), nil
}

func setUpLog(verbosity int) error {
	flags := flag.NewFlagSet("log", flag.ContinueOnError)
	klog.InitFlags(flags)
	// Everything goes to stderr, and errors go to the counter besides: klog calls its outputs only when stderr is
	// not its only one.
	for name, value := range map[string]string{
		"logtostderr":     "false",
		"alsologtostderr": "true",
		"one_output":      "true",
		"v":               fmt.Sprint(verbosity),
	} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("setting up the log: %w", err)
		}
	}
	klog.SetOutput(io.Discard)
	klog.SetOutputBySeverity("ERROR", &logErrors)
	return nil
}

func run(ctx context.Context, c config) error {
	// The controller finds out about a missing one halfway, or never: it then logs an error at each sync and
	// protects nothing.
	for _, tool := range []string{"iptables", "iptables-save", "iptables-restore", "ipset"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is needed to enforce policies: %w", tool, err)
		}
	}

	restConfig, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading -kubeconfig: %w", err)
	}
	restConfig.UserAgent = "vitrine-devcluster-netpol"
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("reading -kubeconfig: %w", err)
	}

	if err := waitForNode(ctx, client, c.node); err != nil {
		return err
	}
	// The controller looks for its Node under three names, in this order: NODE_NAME, the machine's hostname, and
	// only then the name it was configured with. With several nodes on one machine, one of them perhaps named like
	// the machine, it would guard the wrong one. So the name goes where it looks first.
	if err := os.Setenv("NODE_NAME", c.node); err != nil {
		return fmt.Errorf("setting NODE_NAME: %w", err)
	}

	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	if err := fillCaches(ctx, factory); err != nil {
		return err
	}

	o := options.NewKubeRouterConfig()
	o.HostnameOverride = c.node
	o.ClusterIPCIDR = c.serviceCIDR
	o.NodePortRange = c.nodePortRange
	o.IPTablesSyncPeriod = c.syncPeriod
	o.RunFirewall = true
	// kube-router's controllers share the mutex so that they do not change ipsets at the same time. Here there is
	// one controller, but it expects one.
	var ipsets sync.Mutex
	npc, err := netpol.NewNetworkPolicyController(client, o, pods, policies, namespaces, &ipsets)
	if err != nil {
		return fmt.Errorf("setting up the policy controller: %w", err)
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{pods, npc.PodEventHandler},
		{namespaces, npc.NamespaceEventHandler},
		{policies, npc.NetworkPolicyEventHandler},
	} {
		if _, err := w.informer.AddEventHandler(w.handler); err != nil {
			return fmt.Errorf("watching for changes: %w", err)
		}
	}

	beats := make(chan *healthcheck.ControllerHeartbeat)
	ready := make(chan struct{})
	go watchSyncs(beats, npc.RequestFullSync, ready)
	var running sync.WaitGroup
	running.Add(1)
	go npc.Run(beats, ctx.Done(), &running)

	select {
	case <-ready:
		// By itself on a line of stdout, for whoever started us and waits.
		fmt.Println("ready")
		<-ctx.Done()
	case <-ctx.Done():
	case <-time.After(firstSyncWait):
		return fmt.Errorf("no sync of the rules succeeded within %s: see the errors above", firstSyncWait)
	}

	// The rules stay: without us nothing is guarded any more that starts from now on, but what runs stays guarded.
	// They go away with the network namespace.
	stopped := make(chan struct{})
	go func() {
		running.Wait()
		close(stopped)
	}()
	select {
	case <-stopped:
		return nil
	case <-time.After(stopWait):
		return fmt.Errorf("the policy controller did not stop within %s", stopWait)
	}
}

// waitForNode returns once the Node is there and has an address. Both come from its kubelet, which may have been
// started at the same time as we were or may have to wait for its own parts; the controller asks once and gives up.
func waitForNode(ctx context.Context, client kubernetes.Interface, name string) error {
	deadline := time.Now().Add(nodeWait)
	said := ""
	for {
		reason, err := nodeReady(ctx, client, name)
		if err != nil || reason == "" {
			return err
		}
		if reason != said {
			klog.Infof("waiting: %s", reason)
			said = reason
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("node %q was not ready for us within %s: %s", name, nodeWait, reason)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollPause):
		}
	}
}

// nodeReady says why the Node cannot be used yet (nothing: it can be), or that it never can.
func nodeReady(ctx context.Context, client kubernetes.Interface, name string) (string, error) {
	asking, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	node, err := client.CoreV1().Nodes().Get(asking, name, metav1.GetOptions{})
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case apierrors.IsNotFound(err):
		return "the Node object does not exist", nil
	case err != nil:
		// Also when access is refused: the API server makes its own roles only after it has started.
		return err.Error(), nil
	}
	// The order in which the controller chooses, too.
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, address := range node.Status.Addresses {
			if address.Type != kind {
				continue
			}
			// It would take any other one, then find none of the node's pods and guard nothing.
			if ip := net.ParseIP(address.Address); ip == nil || ip.To4() == nil {
				return "", fmt.Errorf("node %q has the address %q: an IPv4 address is needed", name, address.Address)
			}
			return "", nil
		}
	}
	return "the Node object has no address", nil
}

// fillCaches starts the informers and returns once they hold everything. A sync before that would take the missing
// policies for deleted ones and open what they close.
func fillCaches(ctx context.Context, factory informers.SharedInformerFactory) error {
	factory.Start(ctx.Done())
	filling, cancel := context.WithTimeout(ctx, cacheWait)
	defer cancel()
	for kind, filled := range factory.WaitForCacheSync(filling.Done()) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !filled {
			return fmt.Errorf("could not list all objects of type %v within %s", kind, cacheWait)
		}
	}
	return nil
}

// watchSyncs closes ready once one whole sync of the rules is over in which nothing failed.
//
// The controller tells nobody when a sync is over, but it sends a heartbeat at the start of each one, and they run
// one after the other: the heartbeat of a sync is the end of the sync before. So another sync is asked for at each
// heartbeat until we are ready.
//
// A sync that fails logs an error and sends nothing. A count of zero at two heartbeats in a row means that nothing
// failed in the sync between them. At the second alone it would not be enough: the count is reset a moment after the
// first heartbeat, and an error in that moment would be lost with the reset.
func watchSyncs(beats <-chan *healthcheck.ControllerHeartbeat, requestSync func(), ready chan<- struct{}) {
	clean := 0
	for range beats {
		// The controller waits until its heartbeat is received, so they are received for as long as we run.
		if clean == 2 {
			continue
		}
		if logErrors.Swap(0) == 0 {
			clean++
		} else {
			clean = 0
		}
		switch clean {
		case 0:
			time.AfterFunc(retryPause, requestSync)
		case 1:
			requestSync()
		case 2:
			close(ready)
		}
	}
}
