// Package check reads compose.yaml with Compose's own library and kubernetes.yaml with
// Kubernetes's own types: a member that they do not know fails. It also checks the variables
// and times of authsession.service. It is a module of its own so that the service's go.mod
// stays short.
package check

import (
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

func load(t *testing.T, text []byte) *types.Project {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  root,
		ConfigFiles: []types.ConfigFile{{Filename: "compose.yaml", Content: text}},
		Environment: types.Mapping{"JWT_ISSUER": "https://login.example"},
	})
	if err != nil {
		t.Fatalf("loading compose.yaml: %v", err)
	}
	return project
}

func TestCompose(t *testing.T) {
	text, err := os.ReadFile("../../compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	project := load(t, text)
	for name, s := range project.Services {
		if !s.ReadOnly || s.Privileged || !slices.Equal(s.CapDrop, []string{"ALL"}) ||
			!slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("%s has privileges: %+v", name, s)
		}
		if uid, _, _ := strings.Cut(s.User, ":"); uid == "" || uid == "0" || uid == "root" {
			t.Errorf("%s runs as %q", name, s.User)
		}
		if s.HealthCheck == nil || len(s.HealthCheck.Test) < 2 || s.MemLimit == 0 {
			t.Errorf("%s has no health check or no memory limit", name)
		}
		if _, tag, _ := strings.Cut(s.Image, ":"); s.Build == nil && strings.Count(tag, ".") != 2 {
			t.Errorf("%s: the image %s is not pinned", name, s.Image)
		}
		for _, port := range s.Ports {
			if name != "gateway" || port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %+v", name, port)
			}
		}
		for dependency, d := range s.DependsOn {
			if d.Condition != types.ServiceConditionHealthy {
				t.Errorf("%s waits for %s to be %s", name, dependency, d.Condition)
			}
		}
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			_, err := os.Stat(v.Source)
			if made := filepath.Base(v.Source) == "jwks.json"; !v.ReadOnly || err != nil && !made {
				t.Errorf("%s mounts %+v: %v", name, v, err)
			}
		}
	}
	// The gateway waits for /readyz. A Redis that is down is no reason to replace a container of the image.
	image, err := os.ReadFile("../../Dockerfile")
	ready := project.Services["authsession"].HealthCheck.Test
	if err != nil || !slices.Equal(ready, []string{"CMD", "/authsession", "healthcheck"}) ||
		!bytes.Contains(image, []byte(`CMD ["/authsession", "healthcheck", "-live"]`)) {
		t.Errorf("compose.yaml's health check is %q, or the image's is not -live (%v)", ready, err)
	}
	env := map[string]string{}
	for name, value := range project.Services["authsession"].Environment {
		env[name] = *value
	}
	wantConfig(t, "compose.yaml", env, time.Duration(*project.Services["authsession"].StopGracePeriod))
	if env["JWT_ISSUER"] != "https://login.example" || env["JWT_AUDIENCE"] != "" {
		t.Errorf("issuer and audience are %q and %q", env["JWT_ISSUER"], env["JWT_AUDIENCE"])
	}
	command := strings.Join(project.Services["redis"].Command, " ")
	if !strings.Contains(command, "--appendonly yes") || !strings.Contains(command, "--maxmemory-policy noeviction") {
		t.Errorf("redis runs as %q", command)
	}

	// With TLS turned on as the file says.
	gateway := load(t, bytes.ReplaceAll(text, []byte("# TLS - "), []byte("- "))).Services["gateway"]
	before := project.Services["gateway"]
	if len(gateway.Volumes) != len(before.Volumes)+2 || len(gateway.Ports) != len(before.Ports)+1 {
		t.Errorf("with TLS: volumes %v, ports %v", gateway.Volumes, gateway.Ports)
	}
}

// wantConfig checks that the service takes each variable and its value, and that it may
// live for DRAIN_DELAY and SHUTDOWN_GRACE after SIGTERM.
func wantConfig(t *testing.T, file string, env map[string]string, grace time.Duration) {
	t.Helper()
	config, err := os.ReadFile("../../internal/config/config.go")
	if err != nil {
		t.Fatal(err)
	}
	// A wrong ADDR ends the service at once, with one message of all that is wrong.
	binary := filepath.Join(t.TempDir(), "authsession")
	if out, err := exec.Command("go", "build", "-C", "../..", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}
	run := exec.Command(binary)
	run.Env = []string{"ADDR=nope"}
	for name, value := range env {
		if name != "GOMEMLIMIT" && !bytes.Contains(config, []byte(`"`+name+`"`)) {
			t.Errorf("%s: the service has no variable %s", file, name)
		}
		if strings.HasPrefix(value, "/run/secrets/") || strings.HasPrefix(value, "%d/") { // is not there
			continue
		}
		run.Env = append(run.Env, name+"="+value)
	}
	out, err := run.CombinedOutput()
	if err == nil || string(out) != "authsession: ADDR=\"nope\" must be host:port or :port\n" {
		t.Errorf("%s: with its variables and a wrong ADDR the service says %s, want nothing but ADDR", file, out)
	}
	needed := 2 * time.Second
	for name, fallback := range map[string]string{"DRAIN_DELAY": "0s", "SHUTDOWN_GRACE": "10s"} {
		d, _ := time.ParseDuration(cmp.Or(env[name], fallback))
		needed += d
	}
	if grace < needed {
		t.Errorf("%s: killed after %s, want %s at least for DRAIN_DELAY and SHUTDOWN_GRACE", file, grace, needed)
	}
}

func TestKubernetes(t *testing.T) {
	text, err := os.ReadFile("../kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var (
		deployment appsv1.Deployment
		service    corev1.Service
		budget     policyv1.PodDisruptionBudget
		policy     networkingv1.NetworkPolicy
	)
	objects := map[metav1.TypeMeta]any{
		{APIVersion: "apps/v1", Kind: "Deployment"}:                 &deployment,
		{APIVersion: "v1", Kind: "Service"}:                         &service,
		{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}:      &budget,
		{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}: &policy,
	}
	for i, document := range strings.Split(string(text), "\n---\n")[1:] {
		var of metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &of); err != nil {
			t.Fatal(err)
		}
		object := objects[of]
		if object == nil {
			t.Fatalf("document %d is %v", i, of)
		}
		delete(objects, of)
		if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
			t.Fatalf("%v: %v", of, err)
		}
	}
	if len(objects) > 0 {
		t.Fatalf("not there: %v", objects)
	}

	template := deployment.Spec.Template
	pod := template.Spec
	for what, selector := range map[string]*metav1.LabelSelector{
		"Deployment": deployment.Spec.Selector, "PodDisruptionBudget": budget.Spec.Selector,
		"NetworkPolicy": &policy.Spec.PodSelector,
		"Service":       {MatchLabels: service.Spec.Selector}, "spread": pod.TopologySpreadConstraints[0].LabelSelector,
	} {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || s.Empty() || !s.Matches(labels.Set(template.Labels)) {
			t.Errorf("the %s does not select the pods: %v", what, err)
		}
	}
	c := pod.Containers[0]
	ports := map[string]bool{}
	for _, port := range c.Ports {
		ports[port.Name] = true
	}
	for what, probe := range map[string]*corev1.Probe{"/livez": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if probe.HTTPGet.Path != what || probe.HTTPGet.Port.StrVal != "metrics" || !ports["metrics"] {
			t.Errorf("a probe asks %s on %v, want %s on METRICS_ADDR", probe.HTTPGet.Path, probe.HTTPGet.Port, what)
		}
	}
	target := service.Spec.Ports[0].TargetPort.StrVal
	if len(service.Spec.Ports) != 1 || target != "http" || !ports[target] {
		t.Errorf("the Service's ports are %v, want http alone", service.Spec.Ports)
	}
	if s := c.SecurityContext; !*pod.SecurityContext.RunAsNonRoot ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		!*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Error("the pod has privileges")
	}
	if n := *deployment.Spec.Replicas; n < 2 || budget.Spec.MaxUnavailable.IntValue() >= int(n) {
		t.Errorf("a disruption may end all of %d replicas", n)
	}
	env := map[string]string{}
	for _, v := range c.Env {
		env[v.Name] = v.Value
	}
	if !strings.HasPrefix(env["REDIS_URL"], "rediss://") || env["REDIS_CA_FILE"] == "" {
		t.Errorf("Redis is reached without TLS: %s", env["REDIS_URL"])
	}
	wantConfig(t, "kubernetes.yaml", env, time.Duration(*pod.TerminationGracePeriodSeconds)*time.Second)
}

// e2e has systemd read the unit. This checks what systemd cannot know.
func TestUnit(t *testing.T) {
	text, err := os.ReadFile("../authsession.service")
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"AUTH_URL": "https://consent.example/", "REDIS_URL": "redis://127.0.0.1",
		"JWKS_URL": "https://login.example/"} // of its EnvironmentFile
	for _, line := range regexp.MustCompile(`(?m)^Environment=(\w+)=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		env[line[1]] = line[2]
	}
	_, after, _ := strings.Cut(string(text), "\nTimeoutStopSec=")
	value, _, _ := strings.Cut(after, "\n")
	grace, err := time.ParseDuration(value)
	if err != nil {
		t.Fatal(err)
	}
	wantConfig(t, "authsession.service", env, grace)
}
