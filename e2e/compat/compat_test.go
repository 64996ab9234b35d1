package compat

import (
	"os/exec"
	"testing"
)

// TestGeneratedClient generates the client and runs the tests in client. They have a build tag because they do not
// compile without gen.
func TestGeneratedClient(t *testing.T) {
	for _, args := range [][]string{
		{"generate", "."},
		{"vet", "-tags", "generated", "./..."},
		{"test", "-tags", "generated", "-count=1", "-timeout=2m", "-v", "./client"},
	} {
		output, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
		t.Logf("go %v\n%s", args, output)
		if err != nil {
			t.Fatalf("go %s: %v", args[0], err)
		}
	}
}
