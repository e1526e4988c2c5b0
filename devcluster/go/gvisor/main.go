// Command containerd-shim-runsc-v1 is gVisor's shim for containerd, which also starts where a process may not be made
// less likely to be killed on memory pressure.
//
// gVisor's own command gives the shim the oom_score_adj -999 and kills it again when the kernel refuses. Lowering the
// value takes CAP_SYS_RESOURCE, which root has not got on every machine that the cluster runs on. So starting is done
// here, with that write as a mere try; serving, cleaning up and all the rest are gVisor's own.
//
// Starting differs in one more way: the containers of a pod always share one shim. gVisor's own command does that only
// if a configuration file at a fixed place of the machine says so.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/sys"
	runsc "gvisor.dev/gvisor/pkg/shim/v1"
	_ "gvisor.dev/gvisor/pkg/shim/v1/plugin" // what the shim serves
)

// podAnnotation holds the id of a container's pod; containerd puts it on every container that Kubernetes asks for.
const podAnnotation = "io.kubernetes.cri.sandbox-id"

// shimOOMScore keeps the memory killer away from a shim as long as anything else is left.
const shimOOMScore = -999

func main() {
	// The name counts: containerd derives this file's name from it, and the protocol version below belongs to it.
	shim.Run(context.Background(), manager{runsc.NewShimManager("io.containerd.runsc.v1")})
}

// manager is gVisor's but for Start.
type manager struct{ shim.Manager }

// Start makes sure that a shim serves the pod of a container, and says where. containerd runs it in the container's
// bundle and takes all that is printed, on stderr too, for the answer: so nothing here may log.
func (manager) Start(ctx context.Context, id string, opts shim.StartOpts) (shim.BootstrapParams, error) {
	var none shim.BootstrapParams
	pod, err := podOf(id)
	if err != nil {
		return none, err
	}
	address, err := shim.SocketAddress(ctx, opts.Address, pod, opts.Debug)
	if err != nil {
		return none, err
	}
	listener, err := listen(address)
	if err != nil {
		return none, fmt.Errorf("listen for the shim: %w", err)
	}
	// The shim reads this file to remove its socket when it ends.
	if err := os.WriteFile("address", []byte(address), 0o644); err != nil {
		return none, err
	}
	if listener != nil {
		if err := spawn(ctx, id, opts, listener); err != nil {
			listener.Close()
			return none, fmt.Errorf("start the shim: %w", err)
		}
	}
	// 2 is the version of the task service that gVisor implements.
	return shim.BootstrapParams{Version: 2, Address: address, Protocol: "ttrpc"}, nil
}

// podOf answers with the id of a container's pod, or its own where it has none.
func podOf(id string) (string, error) {
	text, err := os.ReadFile("config.json")
	if err != nil {
		return "", err
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		return "", fmt.Errorf("config.json: %w", err)
	}
	if pod := spec.Annotations[podAnnotation]; pod != "" {
		return pod, nil
	}
	return id, nil
}

// listen answers with nothing where a shim serves the address already.
func listen(address string) (*net.UnixListener, error) {
	listener, err := shim.NewSocket(address)
	if err == nil || !shim.SocketEaddrinuse(err) {
		return listener, err
	}
	if shim.CanConnect(address) {
		return nil, nil
	}
	// The shim that left this was killed.
	if err := shim.RemoveSocket(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return shim.NewSocket(address)
}

// spawn runs this program again, as the shim: with the socket as its file 3, which is where it is looked for.
func spawn(ctx context.Context, id string, opts shim.StartOpts, listener *net.UnixListener) error {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	cmd := exec.Command(self, "-namespace", namespace, "-address", opts.Address, "-id", id)
	if opts.Debug {
		cmd.Args = append(cmd.Args, "-debug")
	}
	cmd.ExtraFiles = []*os.File{socket}
	// It outlives us, and a signal to our group is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// The one step that gVisor's own command insists on.
	_ = sys.SetOOMScore(cmd.Process.Pid, shimOOMScore)
	return nil
}
