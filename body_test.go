package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// deep is an object that holds n arrays inside each other.
func deep(n int) string {
	return `{"deep":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
}

// objectTests have the name of their rule and the error of scanObject.
var objectTests = []struct {
	name string
	data string
	want error
}{
	{"no member", `{}`, nil},
	{"white space everywhere", " \t\r\n{ \"a\" : [ 1 , { } , [ ] ] , \"b\" : { \"c\" : null } } \n", nil},
	{"every kind of value", `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":{"g":[]},"h":[{}]}`, nil},
	{"every escape", `{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"}`, nil},
	{"DEL and beyond ASCII as they are", "{\"\x7f\":\"é\U0001F600\u2028\"}", nil},
	{"names that differ in case", `{"a":1,"A":2}`, nil},
	{"names that begin alike", `{"a":1,"ab":2,"":3}`, nil},
	{"names repeated inside values", `{"a":{"b":1,"b":2},"b":[{"a":1,"a":2}]}`, nil},
	{"more than eight members", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10}`, nil},
	{"deeper than encoding/json goes", deep(32 << 10), nil},
	{"deep objects", strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000), nil},

	{"nothing", "", errNotObject},
	{"white space", " \r\n\t", errNotObject},
	{"null", `null`, errNotObject},
	{"array", `[{}]`, errNotObject},
	{"string", `"{}"`, errNotObject},
	{"number", `1`, errNotObject},
	{"byte order mark", "\ufeff{}", errNotObject},
	{"another kind of white space", "\u00a0{}", errNotObject},
	{"form feed", "\f{}", errNotObject},
	{"NUL", "\x00{}", errNotObject},

	{"UTF-16 LE", "{\x00}\x00", errSyntax},
	{"open", `{`, errSyntax},
	{"open after a name", `{"a"`, errSyntax},
	{"open after a colon", `{"a":`, errSyntax},
	{"open after a value", `{"a":1`, errSyntax},
	{"open after a comma", `{"a":1,`, errSyntax},
	{"open inside a value", `{"a":[1`, errSyntax},
	{"open, deep", strings.Repeat(`{"a":[`, 10000), errSyntax},
	{"comma first", `{,"a":1}`, errSyntax},
	{"comma last", `{"a":1,}`, errSyntax},
	{"two commas", `{"a":1,,"b":2}`, errSyntax},
	{"no comma", `{"a":1 "b":2}`, errSyntax},
	{"no colon", `{"a" 1}`, errSyntax},
	{"two colons", `{"a"::1}`, errSyntax},
	{"no value", `{"a":}`, errSyntax},
	{"comma last in an array", `{"a":[1,]}`, errSyntax},
	{"comma only in an array", `{"a":[,]}`, errSyntax},
	{"comma last in an inner object", `{"a":{"b":1,}}`, errSyntax},
	{"no colon in an inner object", `{"a":{"b"}}`, errSyntax},
	{"wrong closer", `{"a":[1}`, errSyntax},
	{"wrong closer of an inner object", `{"a":{"b":1]}`, errSyntax},
	{"number as a name", `{1:1}`, errSyntax},
	{"name without quotes", `{a:1}`, errSyntax},
	{"single quotes", `{'a':1}`, errSyntax},
	{"comment", `{/**/"a":1}`, errSyntax},
	{"line comment after it", "{} // x", errSyntax},
	{"literal in capitals", `{"a":TRUE}`, errSyntax},
	{"literal cut short", `{"a":nul}`, errSyntax},
	{"literal with more", `{"a":nulls}`, errSyntax},
	{"undefined", `{"a":undefined}`, errSyntax},
	{"letter after it", `{}x`, errSyntax},
	{"closer after it", `{}]`, errSyntax},
	{"second object", `{}{}`, errSyntax},
	{"second object on a new line", "{}\n{}", errSyntax},
	{"NUL after it", "{}\x00", errSyntax},
	{"NUL inside", "{\"a\":1\x00}", errSyntax},
	{"line separator after it", "{}\u2028", errSyntax},
	{"string left open", `{"a":"x}`, errSyntax},
	{"escaped quote at the end", `{"a":"x\"}`, errSyntax},
	{"backslash at the end", `{"a":"x\`, errSyntax},
	{"line feed in a string", "{\"a\":\"\n\"}", errSyntax},
	{"NUL in a string", "{\"a\":\"\x00\"}", errSyntax},
	{"unit separator in a name", "{\"\x1f\":1}", errSyntax},
	{"unknown escape", `{"a":"\x41"}`, errSyntax},
	{"capital escape", `{"a":"\N"}`, errSyntax},
	{"short unicode escape", `{"a":"\u00e"}`, errSyntax},
	{"unicode escape cut off", `{"a":"\u00`, errSyntax},
	{"unicode escape with a sign", `{"a":"\u+0e9"}`, errSyntax},

	{"stray byte", "{\"a\":\"\xff\"}", errNotUTF8},
	{"overlong form", "{\"a\":\"\xc0\xaf\"}", errNotUTF8},
	{"surrogate in UTF-8", "{\"a\":\"\xed\xa0\x80\"}", errNotUTF8},
	{"cut inside a character", "{\"a\":\"\xc3\"}", errNotUTF8},
	{"stray byte after it", "{}\x80", errNotUTF8},
	{"stray byte in a name", "{\"\xfe\":1}", errNotUTF8},

	{"high surrogate alone", `{"a":"\ud83d"}`, errSurrogate},
	{"low surrogate alone", `{"a":"\ude00"}`, errSurrogate},
	{"surrogates in reverse", `{"a":"\ude00\ud83d"}`, errSurrogate},
	{"two high surrogates", `{"a":"\ud83d\ud83d"}`, errSurrogate},
	{"high surrogate and a letter", `{"a":"\ud83d\u0061"}`, errSurrogate},
	{"high surrogate and another escape", `{"a":"\ud83d\n"}`, errSurrogate},
	{"high surrogate at the end of input", `{"a":"\ud83d\ude`, errSurrogate},
	{"surrogate in a name", `{"\udfff":1}`, errSurrogate},
	{"surrogate in an inner name", `{"a":[{"\ud800":1}]}`, errSurrogate},

	{"name twice", `{"a":1,"a":2}`, errNameTwice},
	{"name twice, the same value", `{"a":1,"a":1}`, errNameTwice},
	{"name twice, once escaped", `{"a":1,"\u0061":2}`, errNameTwice},
	{"name twice, escaped in two ways", `{"\u002F":1,"\/":2}`, errNameTwice},
	{"empty name twice", `{"":1,"":2}`, errNameTwice},
	{"name twice, first and eighth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"a":8}`, errNameTwice},
	{"name twice, first and ninth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"\u0061":9}`, errNameTwice},
	{"name twice, eighth and ninth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"h":9}`, errNameTwice},
	{"name twice, ninth and tenth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"i":10}`, errNameTwice},
}

func TestScanObject(t *testing.T) {
	for _, test := range objectTests {
		t.Run(test.name, func(t *testing.T) {
			if err := scanObject([]byte(test.data), func(_, _ []byte) {}); !errors.Is(err, test.want) {
				t.Errorf("scanObject(%.100q) = %v, want %v", test.data, err, test.want)
			}
		})
	}
}

func TestScanObjectNumbers(t *testing.T) {
	numbers := map[bool][]string{
		true:  {"0", "-0", "7", "10", "-12", "0.0", "1.50", "-0.1", "0e0", "1E5", "1e+05", "1.2e-3", "1e999", "123456789012345678901234567890"},
		false: {"", "-", "+1", "01", "-01", "00", "1.", ".5", "-.5", "1.e1", "1e", "1e+", "1e1.5", "0x1", "1_0", "1,0", "NaN", "-Infinity", "1a", "--1", "٣"},
	}
	for valid, texts := range numbers {
		for _, text := range texts {
			err := scanObject([]byte(`{"n":`+text+`}`), func(_, _ []byte) {})
			if (err == nil) != valid || err != nil && !errors.Is(err, errSyntax) {
				t.Errorf("scanObject of the number %q = %v, want valid %t", text, err, valid)
			}
		}
	}
}

// What a member is called with: its name unescaped, its value as it stands.
func TestScanObjectMembers(t *testing.T) {
	var got []string
	err := scanObject([]byte(`{ "a" : "\u0061" , "\u0065\"\n😀" :{ "x" : [1, 2] } ,"":-1e5, "b":null}`), func(name, value []byte) {
		got = append(got, string(name)+"="+string(value))
	})
	want := []string{`a="\u0061"`, "e\"\n😀={ \"x\" : [1, 2] }", "=-1e5", "b=null"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("members = %q, %v, want %q", got, err, want)
	}
}

func TestDecodeObject(t *testing.T) {
	got, err := decodeObject([]byte(`{"n":1.0,"s":"\u0061","a":["x",{"y":null}],"t":true}`))
	if err != nil {
		t.Fatalf("decodeObject: %v", err)
	}
	if string(encodeJSON(got)) != `{"a":["x",{"y":null}],"n":1.0,"s":"a","t":true}` {
		t.Errorf("decodeObject = %s", encodeJSON(got))
	}
	if _, ok := got["n"].(json.Number); !ok {
		t.Errorf("a number is %T, want json.Number", got["n"])
	}
	for _, test := range objectTests {
		got, err := decodeObject([]byte(test.data))
		switch {
		case test.want != nil && !errors.Is(err, test.want):
			t.Errorf("%s: decodeObject(%.100q) = %v, want %v", test.name, test.data, err, test.want)
		// Its depth is encoding/json's: an object it did not decode is an error, not an empty one.
		case test.want == nil && (got == nil) != (err != nil):
			t.Errorf("%s: decodeObject(%.100q) = %v, %v", test.name, test.data, got, err)
		}
	}
}

// FuzzBody holds scanObject against encoding/json: what it takes and refuses must be
// what encoding/json does, but for the rules that body.go adds.
func FuzzBody(f *testing.F) {
	for _, test := range objectTests {
		if len(test.data) < 1000 { // the fuzzer is slow to make what is long shorter
			f.Add([]byte(test.data))
		}
	}
	for _, body := range []string{
		goodBody,
		`{"end_user_id":"eu_1","institution_id":"10","redirect_uri":"https://acme.com/success","cancel_uri":"https://acme.com/cancel"}`,
		`{"end_user_id":"\u0065u","institution_id":null,"redirect_uri":"","cancel_uri":"com.example.app:\/x"}`,
		`{"END_USER_ID":"x","end_user_id":"y","z":[{"end_user_id":1}]}`,
		`{"end_user_id":1,"institution_id":" ","redirect_uri":"http://x","cancel_uri":{}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var object map[string]json.RawMessage
		isObject := json.Unmarshal(data, &object) == nil && object != nil
		seen := lookAt(data)
		switch err := scanObject(data, func(_, _ []byte) {}); {
		case err == nil:
			if !utf8.Valid(data) || seen.replaced || seen.nameTwice || !isObject && seen.depth <= jsonDepth {
				t.Errorf("scanObject takes what it must not: object %t, %+v", isObject, seen)
			}
		case errors.Is(err, errNotUTF8) && !utf8.Valid(data):
		case errors.Is(err, errNotObject) && !isObject:
		case errors.Is(err, errSyntax) && !json.Valid(data):
		case errors.Is(err, errSurrogate) && (seen.replaced || !json.Valid(data)):
		case errors.Is(err, errNameTwice) && seen.nameTwice:
		default:
			t.Errorf("scanObject = %v, but it is an object %t, %+v", err, isObject, seen)
		}

		request, unknown, err := parseSessionRequest(data)
		if len(unknown) > maxUnknown {
			t.Errorf("%d names of unknown members", len(unknown))
		}
		if _, ok := errors.AsType[*apiError](err); err != nil && !ok {
			t.Fatalf("parseSessionRequest fails with a %T: %v", err, err)
		}
		if err != nil || !isObject {
			return
		}
		for name, got := range map[string]string{
			"end_user_id":    request.endUserID,
			"institution_id": request.institutionID,
			"redirect_uri":   request.redirectURI,
			"cancel_uri":     request.cancelURI,
		} {
			var want string // null leaves it so
			if value, given := object[name]; given {
				if err := json.Unmarshal(value, &want); err != nil {
					t.Fatalf("%s is taken, but: %v", name, err)
				}
			}
			if got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
	})
}

const jsonDepth = 10000 // encoding/json goes no deeper

// looks is what encoding/json's tokens, which nest without a limit, say of a text.
type looks struct {
	depth     int
	nameTwice bool // at the top
	replaced  bool // a surrogate escape became U+FFFD
}

func lookAt(data []byte) (l looks) {
	// A text that has a U+FFFD of its own can't tell whether one was put in.
	own := bytes.ContainsRune(data, utf8.RuneError) || bytes.Contains(bytes.ToLower(data), []byte(`\ufffd`))
	names := map[string]bool{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	level, isName := 0, false
	for {
		token, err := d.Token()
		if err != nil {
			return l
		}
		if delim, ok := token.(json.Delim); ok {
			level += map[json.Delim]int{'{': 1, '[': 1, '}': -1, ']': -1}[delim]
			l.depth = max(l.depth, level)
			isName = level == 1
			continue
		}
		text, _ := token.(string)
		if !own && strings.ContainsRune(text, utf8.RuneError) {
			l.replaced = true
		}
		if level == 1 {
			if isName {
				l.nameTwice = l.nameTwice || names[text]
				names[text] = true
			}
			isName = !isName
		}
	}
}
