package seal_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"authsession/internal/seal"
	"authsession/internal/testkit"
)

// Another implementation made the records in testdata.
func TestOpen(t *testing.T) {
	data, err := os.ReadFile("testdata/records.json")
	testkit.Must(t, err)
	var records map[string]struct {
		Secret string `json:"sess_id"`
		Value  []byte `json:"value_base64"`
		Record string `json:"record"`
	}
	testkit.Must(t, json.Unmarshal(data, &records))
	for _, name := range []string{"plain", "sealed"} {
		r := records[name]
		if got, err := seal.Open(r.Secret, r.Value); err != nil || string(got) != r.Record {
			t.Errorf("Open(%s) = %s, %v, want %s", name, got, err, r.Record)
		}
	}
}

func TestSeal(t *testing.T) {
	const secret, record = "a-secret", `{"v":1}`
	first, second := seal.Seal(secret, []byte(record)), seal.Seal(secret, []byte(record))
	if bytes.Equal(first[1:13], second[1:13]) || bytes.Equal(first[13:], second[13:]) {
		t.Error("Seal used the same nonce twice")
	}
	if len(first) != 1+12+len(record)+16 || first[0] != 1 || bytes.Contains(first, []byte(record)) {
		t.Errorf("Seal = %q, want 0x01, a nonce, the encrypted record and a tag", first)
	}
	for _, value := range [][]byte{first, second} {
		if got, err := seal.Open(secret, value); err != nil || string(got) != record {
			t.Errorf("Open(Seal(%s)) = %q, %v", record, got, err)
		}
	}
}

func TestOpenFails(t *testing.T) {
	value := seal.Seal("a-secret", []byte(`{"v":1}`))
	if got, err := seal.Open("another", value); err == nil {
		t.Errorf("Open with another secret = %q, want an error", got)
	}
	for i := range value {
		changed := bytes.Clone(value)
		changed[i] ^= 0x80
		if got, err := seal.Open("a-secret", changed); err == nil {
			t.Errorf("Open with byte %d changed = %q, want an error", i, got)
		}
	}
	for n := range len(value) {
		if got, err := seal.Open("a-secret", value[:n]); err == nil {
			t.Errorf("Open of the first %d bytes = %q, want an error", n, got)
		}
	}
}
