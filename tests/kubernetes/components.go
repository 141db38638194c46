package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/coredns/coredns/coremain"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"

	// The plugins of CoreDNS that a Corefile of a cluster names. Their order in
	// a server block is CoreDNS's own table, not this list.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
)

// corednsFlags are the flags CoreDNS registers with the process as it is
// linked. The other components copy the flags of the process into their own,
// where these would clash (--version) or mislead.
var corednsFlags = map[string]bool{
	"conf": true, "dns.port": true, "p": true, "pidfile": true,
	"plugins": true, "quiet": true, "version": true,
}

// withoutCoreDNSFlags gives the process the flags it would have if CoreDNS
// were not linked into it.
func withoutCoreDNSFlags() {
	kept := flag.NewFlagSet(os.Args[0], flag.ExitOnError)
	flag.CommandLine.VisitAll(func(f *flag.Flag) {
		if !corednsFlags[f.Name] {
			kept.Var(f.Value, f.Name, f.Usage)
		}
	})
	flag.CommandLine = kept
}

func runEtcd() int {
	withoutCoreDNSFlags()
	etcdmain.Main(os.Args)
	return 0
}

func runAPIServer() int {
	withoutCoreDNSFlags()
	return cli.Run(apiserver.NewAPIServerCommand())
}

func runControllerManager() int {
	withoutCoreDNSFlags()
	return cli.Run(controllermanager.NewControllerManagerCommand())
}

func runProxy() int {
	withoutCoreDNSFlags()
	return cli.Run(proxy.NewProxyCommand())
}

func runCoreDNS() int {
	coremain.Run()
	return 0
}

// runKubectl is the main function of kubectl.
func runKubectl() int {
	withoutCoreDNSFlags()
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintf(os.Stderr, "kubectl: %v\n", err)
		return 2
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		// Prints the error the way kubectl does and exits with its code.
		kubectlutil.CheckErr(err)
	}
	return 0
}

// printVersions prints the version of each module that a component comes from.
func printVersions(out io.Writer) {
	shown := map[string]bool{
		"github.com/coredns/coredns": true, "go.etcd.io/etcd/server/v3": true, "k8s.io/kubernetes": true,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		fmt.Fprintln(out, "built without module information")
		return
	}
	fmt.Fprintln(out, info.GoVersion)
	for _, module := range info.Deps {
		if shown[module.Path] {
			fmt.Fprintln(out, module.Path, module.Version)
		}
	}
}
