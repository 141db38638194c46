// Command linkspan-testbed is the components of a Kubernetes control plane and
// its node networking in one binary: etcd, kube-apiserver,
// kube-controller-manager, kube-proxy, CoreDNS and kubectl, each linked as the
// library its own project ships and started through its own command with its
// own flags. It holds no policy: what a cluster looks like is decided by the
// flags of whoever starts the components.
//
// A component is chosen by the first argument, or by the name the binary is
// called by (a symbolic link named kube-apiserver is kube-apiserver).
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// assetsVariable names the folder of prebuilt binaries that the Kubernetes
// test tools (envtest) agree on. Where it is set, the binaries in it are run
// instead of the linked components of the same name.
const assetsVariable = "KUBEBUILDER_ASSETS"

// component is one program inside the binary.
type component struct {
	// name is the file name upstream ships the program under.
	name string
	// alias is a shorter name accepted as the first argument.
	alias string
	// asset tells whether a folder of test assets holds this program.
	asset bool
	// about is its line in the usage text.
	about string
	// run runs the program with os.Args already set and returns its exit code.
	run func() int
}

// components lists the programs in the order a cluster starts them.
var components = []component{
	{name: "certs", about: "write the CA, certificates, service-account key and kubeconfigs of one cluster", run: runCerts},
	{name: "etcd", asset: true, about: "etcd", run: runEtcd},
	{name: "kube-apiserver", alias: "apiserver", asset: true, about: "the Kubernetes API server", run: runAPIServer},
	{name: "kube-controller-manager", alias: "controller-manager", about: "the Kubernetes controllers", run: runControllerManager},
	{name: "kube-proxy", alias: "proxy", about: "the Kubernetes service proxy", run: runProxy},
	{name: "coredns", about: "CoreDNS with the plugins a cluster needs", run: runCoreDNS},
	{name: "kubectl", asset: true, about: "the Kubernetes command line", run: runKubectl},
}

func main() {
	os.Exit(dispatch(os.Args))
}

// dispatch finds the component that args ask for and runs it.
func dispatch(args []string) int {
	if len(args) > 0 {
		if found := lookup(filepath.Base(args[0])); found != nil {
			return start(*found, args[1:])
		}
	}
	if len(args) < 2 {
		usage(os.Stderr)
		return 2
	}
	switch args[1] {
	case "help", "-h", "--help":
		usage(os.Stdout)
		return 0
	case "versions":
		printVersions(os.Stdout)
		return 0
	}
	if found := lookup(args[1]); found != nil {
		return start(*found, args[2:])
	}
	fmt.Fprintf(os.Stderr, "linkspan-testbed: no component %q; see linkspan-testbed help\n", args[1])
	return 2
}

// lookup returns the component with this name or alias.
func lookup(name string) *component {
	for i := range components {
		if components[i].name == name || (components[i].alias != "" && components[i].alias == name) {
			return &components[i]
		}
	}
	return nil
}

// start runs one component: from the folder of test assets where that holds
// it, otherwise the linked one.
func start(chosen component, args []string) int {
	if folder := os.Getenv(assetsVariable); chosen.asset && folder != "" {
		if path := filepath.Join(folder, chosen.name); !isThisBinary(path) {
			return runAsset(path, chosen.name, args)
		}
	}
	// The components read os.Args themselves.
	os.Args = append([]string{chosen.name}, args...)
	return chosen.run()
}

// isThisBinary tells whether path is a link to the running binary. Such a
// folder of assets is served by the linked components; running it once more
// would never end.
func isThisBinary(path string) bool {
	asset, err := os.Stat(path)
	if err != nil {
		return false
	}
	this, err := os.Stat("/proc/self/exe")
	return err == nil && os.SameFile(asset, this)
}

// runAsset replaces this process by the binary at path, so that its process id
// stays the one the caller knows. A missing binary is an error, never a reason
// to fall back: the tests would then run against something else than asked.
func runAsset(path, name string, args []string) int {
	err := syscall.Exec(path, append([]string{name}, args...), os.Environ())
	fmt.Fprintf(os.Stderr, "linkspan-testbed: %s=%s: cannot run %s: %v; put %s there or unset %s\n",
		assetsVariable, filepath.Dir(path), path, err, name, assetsVariable)
	return 1
}

// usage prints the components.
func usage(out io.Writer) {
	fmt.Fprintln(out, "usage: linkspan-testbed COMPONENT [ARGUMENT...]")
	fmt.Fprintln(out)
	for _, c := range components {
		name := c.name
		if c.alias != "" {
			name += " | " + c.alias
		}
		fmt.Fprintf(out, "  %-45s %s\n", name, c.about)
	}
	fmt.Fprintf(out, "  %-45s %s\n", "versions", "the versions of the linked modules")
	fmt.Fprintln(out)
	fmt.Fprintf(out, "Where %s is set, etcd, kube-apiserver and kubectl are taken from that folder.\n", assetsVariable)
}
