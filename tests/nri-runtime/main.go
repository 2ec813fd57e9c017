// The container runtime's half of NRI, as containerd and CRI-O have it: their own library, without containers. A test says on
// standard input which sandboxes start and stop, one JSON object a line, and reads one line for each: when every plug-in has
// answered, which is when a runtime would go on to start containers.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
)

// What a test asks for.
type request struct {
	// "run", "stop" or "remove".
	Op          string            `json:"op"`
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	UID         string            `json:"uid"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	// Where its network namespace is; none for a pod that has its node's.
	Netns string `json:"netns"`
}

type answer struct {
	Millis float64 `json:"millis"`
	Error  string  `json:"error,omitempty"`
}

// The sandboxes that run.
type state struct {
	sync.Mutex
	pods map[string]*api.PodSandbox
}

func (s *state) list() []*api.PodSandbox {
	s.Lock()
	defer s.Unlock()
	pods := []*api.PodSandbox{}
	for _, pod := range s.pods {
		pods = append(pods, pod)
	}
	return pods
}

func (s *state) keep(pod *api.PodSandbox) {
	s.Lock()
	defer s.Unlock()
	s.pods[pod.Id] = pod
}

func (s *state) drop(id string) *api.PodSandbox {
	s.Lock()
	defer s.Unlock()
	pod := s.pods[id]
	delete(s.pods, id)
	return pod
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket string) error {
	pods := &state{pods: map[string]*api.PodSandbox{}}
	synchronize := func(ctx context.Context, plugin adaptation.SyncCB) error {
		_, err := plugin(ctx, pods.list(), nil)
		return err
	}
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
		return nil, nil
	}
	nri, err := adaptation.New("weft-test", "1", synchronize, update,
		adaptation.WithSocketPath(socket),
		adaptation.WithPluginPath("/nonexistent"),
		adaptation.WithPluginConfigPath("/nonexistent"))
	if err != nil {
		return err
	}
	if err := nri.Start(); err != nil {
		return err
	}
	defer nri.Stop()
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		since := time.Now()
		err := handle(nri, pods, asked)
		done := answer{Millis: float64(time.Since(since).Microseconds()) / 1000}
		if err != nil {
			done.Error = err.Error()
		}
		if err := out.Encode(done); err != nil {
			return err
		}
	}
	return lines.Err()
}

func handle(nri *adaptation.Adaptation, pods *state, asked request) error {
	ctx := context.Background()
	switch asked.Op {
	case "run":
		pod := sandbox(asked)
		pods.keep(pod)
		return nri.RunPodSandbox(ctx, &api.StateChangeEvent{Pod: pod})
	case "stop":
		pod := pods.drop(asked.ID)
		if pod == nil {
			return fmt.Errorf("no sandbox %s", asked.ID)
		}
		if err := nri.StopPodSandbox(ctx, &api.StateChangeEvent{Pod: pod}); err != nil {
			return err
		}
		return nri.RemovePodSandbox(ctx, &api.StateChangeEvent{Pod: pod})
	}
	return fmt.Errorf("op %q is not known", asked.Op)
}

func sandbox(asked request) *api.PodSandbox {
	namespaces := []*api.LinuxNamespace{{Type: "ipc"}, {Type: "mount"}}
	if asked.Netns != "" {
		namespaces = append(namespaces, &api.LinuxNamespace{Type: "network", Path: asked.Netns})
	}
	return &api.PodSandbox{
		Id:          asked.ID,
		Name:        asked.Name,
		Uid:         asked.UID,
		Namespace:   asked.Namespace,
		Labels:      asked.Labels,
		Annotations: asked.Annotations,
		Linux:       &api.LinuxPodSandbox{Namespaces: namespaces},
	}
}
