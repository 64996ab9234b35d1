package strictjson

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
)

// deepArrays is an object that holds n arrays inside one another, so n+1 levels.
func deepArrays(n int) string {
	return `{"deep":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
}

// deepObjects is n objects inside one another, so n levels.
func deepObjects(n int) string { return deep(n, "1") }

// deep is value inside of n objects.
func deep(n int, value string) string {
	return strings.Repeat(`{"a":`, n) + value + strings.Repeat("}", n)
}

// objectTests have the name of their rule, and Object's error.
var objectTests = []struct {
	name string
	data string
	want error
}{
	{"no member", `{}`, nil},
	{"white space everywhere", " \t\r\n{ \"a\" : [ 1 , { } , [ ] ] , \"b\" : { \"c\" : null } } \n", nil},
	{"every kind of value", `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":{"g":[]},"h":[{}]}`, nil},
	{"every escape", `{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"}`, nil},
	{"escaped U+FFFD", `{"a":"\ufffd"}`, nil},
	{"DEL and beyond ASCII as they are", "{\"\x7f\":\"é\U0001F600\u2028\ufffd\"}", nil},
	{"names that differ in case", `{"a":1,"A":2}`, nil},
	{"names that begin alike", `{"a":1,"ab":2,"":3}`, nil},
	{"one name at each level", `{"a":{"a":[{"a":1}]}}`, nil},
	{"one name in neighbours", `{"a":{"x":1},"b":{"x":1},"c":[{"x":1},{"x":1}]}`, nil},
	{"one string in an array twice", `{"a":["a","a"]}`, nil},
	{"more than eight members", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10}`, nil},
	{"1,000 levels of arrays", deepArrays(999), nil},
	{"1,000 levels of objects", deepObjects(1000), nil},
	{"1,000 levels twice", `{"x":` + deepObjects(999) + `,"y":` + deepObjects(999) + `}`, nil},
	{"many values on few levels", `{"a":[` + strings.Repeat("[[]],", 2000) + `0]}`, nil},

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
	{"open, 1,000 levels", strings.Repeat(`{"a":[`, 500), errSyntax},
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

	{"high surrogate alone", `{"a":"\ud83d"}`, errSyntax},
	{"low surrogate alone", `{"a":"\ude00"}`, errSyntax},
	{"surrogates in reverse", `{"a":"\ude00\ud83d"}`, errSyntax},
	{"two high surrogates", `{"a":"\ud83d\ud83d"}`, errSyntax},
	{"high surrogate and a letter", `{"a":"\ud83d\u0061"}`, errSyntax},
	{"high surrogate and another escape", `{"a":"\ud83d\n"}`, errSyntax},
	{"high surrogate at the end of input", `{"a":"\ud83d\ude`, errSyntax},
	{"surrogate in a name", `{"\udfff":1}`, errSyntax},
	{"surrogate in an inner name", `{"a":[{"\ud800":1}]}`, errSyntax},

	{"name twice", `{"a":1,"a":2}`, errNameTwice},
	{"name twice, the same value", `{"a":1,"a":1}`, errNameTwice},
	{"name twice, once escaped", `{"a":1,"\u0061":2}`, errNameTwice},
	{"name twice, escaped in two ways", `{"\u002F":1,"\/":2}`, errNameTwice},
	{"name twice, an emoji and its surrogates", `{"😀":1,"\ud83d\ude00":2}`, errNameTwice},
	{"empty name twice", `{"":1,"":2}`, errNameTwice},
	{"name twice, first and eighth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"a":8}`, errNameTwice},
	{"name twice, first and ninth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"\u0061":9}`, errNameTwice},
	{"name twice, eighth and ninth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"h":9}`, errNameTwice},
	{"name twice, ninth and tenth", `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"i":10}`, errNameTwice},
	{"name twice after a value that has it too", `{"a":{"a":1},"a":2}`, errNameTwice},
	{"name twice in a value", `{"a":{"b":1,"b":2}}`, errNameTwice},
	{"name twice in a value, once escaped", `{"a":{"b":1,"\u0062":2}}`, errNameTwice},
	{"name twice in the last value", `{"a":{"b":1},"c":{"b":1,"d":2,"b":3}}`, errNameTwice},
	{"name twice in an array's object", `{"a":[{"b":1},{"b":1,"b":2}]}`, errNameTwice},
	{"name twice around a value", `{"a":{"b":{"b":1},"b":2}}`, errNameTwice},
	{"empty name twice in a value", `{"a":{"":1,"":2}}`, errNameTwice},
	{"name twice on level 1,000", deep(999, `{"b":1,"b":2}`), errNameTwice},

	{"1,001 levels of arrays", deepArrays(1000), errTooDeep},
	{"1,001 levels of objects", deepObjects(1001), errTooDeep},
	{"1,001 levels in the second member", `{"x":1,"y":` + deepObjects(1000) + `}`, errTooDeep},
	{"1,001 levels of both", strings.Repeat(`{"a":[`, 500) + "[]" + strings.Repeat("]}", 500), errTooDeep},
	{"5,000 levels of objects", deepObjects(5000), errTooDeep},
	{"deeper than encoding/json goes", deepArrays(32 << 10), errTooDeep},
	{"deep and open", strings.Repeat(`{"a":[`, 10000), errTooDeep},
	{"name twice on level 1,001", deep(1000, `{"b":1,"b":2}`), errTooDeep},
}

func TestObject(t *testing.T) {
	for _, test := range objectTests {
		t.Run(test.name, func(t *testing.T) {
			if err := Object([]byte(test.data), func(_, _ []byte) {}); !errors.Is(err, test.want) {
				t.Errorf("Object(%.100q) = %v, want %v", test.data, err, test.want)
			}
		})
	}
}

func TestObjectNumbers(t *testing.T) {
	for valid, numbers := range map[bool][]string{
		true: {"0", "-0", "7", "10", "-12", "0.0", "1.50", "-0.1", "0e0", "1E5", "1e+05", "1.2e-3", "1e999",
			"123456789012345678901234567890"},
		false: {"", "-", "+1", "01", "-01", "00", "1.", ".5", "-.5", "1.e1", "1e", "1e+", "1e1.5", "0x1", "1_0", "1,0",
			"NaN", "-Infinity", "1a", "--1", "٣"},
	} {
		for _, number := range numbers {
			err := Object([]byte(`{"n":`+number+`}`), func(_, _ []byte) {})
			if (err == nil) != valid || err != nil && !errors.Is(err, errSyntax) {
				t.Errorf("Object with the number %q = %v, want valid %t", number, err, valid)
			}
		}
	}
}

// What member is called with: names unescaped, values as they stand.
func TestObjectMembers(t *testing.T) {
	data := `{ "a" : "\u0061" , "\u0065\"\n😀" :{ "x" : [1, 2] } ,"":-1e5, "b":null,"c": [ ] }`
	var got []string
	err := Object([]byte(data), func(name, value []byte) { got = append(got, string(name)+"="+string(value)) })
	want := []string{`a="\u0061"`, "e\"\n😀={ \"x\" : [1, 2] }", "=-1e5", "b=null", "c=[ ]"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("members = %q, %v, want %q", got, err, want)
	}
}

// Decoders are shared, but not by calls at the same time, nor by a call that member makes.
func TestObjectAtOnce(t *testing.T) {
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				var got []string
				err := Object([]byte(`{"a":{"b":1},"c":{"d":2}}`), func(name, value []byte) {
					got = append(got, string(name))
					if err := Object(value, func(name, _ []byte) { got = append(got, string(name)) }); err != nil {
						t.Errorf("Object inside member = %v", err)
					}
				})
				if want := []string{"a", "b", "c", "d"}; err != nil || !slices.Equal(got, want) {
					t.Errorf("names = %q, %v, want %q", got, err, want)
				}
			}
		})
	}
	all.Wait()
}

func TestText(t *testing.T) {
	for _, test := range []struct {
		name, value, want string
		err               error
	}{
		{"string", `"a b"`, "a b", nil},
		{"empty string", `""`, "", nil},
		{"escapes", `"\u0061\"\\\/\n\u00e9\ud83d\ude00"`, "a\"\\/\né😀", nil},
		{"beyond ASCII", `"é😀"`, "é😀", nil},
		{"string that says null", `"null"`, "null", nil},
		{"null", `null`, "", nil},
		{"absent", "", "", nil},
		{"number", `1`, "", errNotString},
		{"negative number", `-1`, "", errNotString},
		{"true", `true`, "", errNotString},
		{"false", `false`, "", errNotString},
		{"object", `{"a":"b"}`, "", errNotString},
		{"array", `["a"]`, "", errNotString},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, err := Text([]byte(test.value)); got != test.want || !errors.Is(err, test.err) {
				t.Errorf("Text(%s) = %q, %v, want %q, %v", test.value, got, err, test.want, test.err)
			}
		})
	}
	if got, err := Text(nil); got != "" || err != nil {
		t.Errorf("Text(nil) = %q, %v, want none", got, err)
	}
}

func TestTexts(t *testing.T) {
	for _, test := range []struct {
		name, value string
		want        []string
		err         error
	}{
		{"one", `["a"]`, []string{"a"}, nil},
		{"many, in order", `["b","a","b"]`, []string{"b", "a", "b"}, nil},
		{"white space", "[ \"a\"\t,\r\n\"b\" ]", []string{"a", "b"}, nil},
		{"escapes", `["\u0061\n","\ud83d\ude00"]`, []string{"a\n", "😀"}, nil},
		{"empty string", `["",""]`, []string{"", ""}, nil},
		{"empty array", `[]`, []string{}, nil},
		{"null", `null`, nil, nil},
		{"absent", "", nil, nil},
		{"string", `"a"`, nil, errNotStrings},
		{"number", `1`, nil, errNotStrings},
		{"true", `true`, nil, errNotStrings},
		{"object", `{"0":"a"}`, nil, errNotStrings},
		{"array with a number", `["a",1]`, nil, errNotStrings},
		{"array with null", `["a",null]`, nil, errNotStrings},
		{"array with only null", `[null]`, nil, errNotStrings},
		{"array with false", `[false,"a"]`, nil, errNotStrings},
		{"array in an array", `[["a"]]`, nil, errNotStrings},
		{"object in an array", `["a",{"b":"c"}]`, nil, errNotStrings},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Texts([]byte(test.value))
			if !slices.Equal(got, test.want) || (got == nil) != (test.want == nil) || !errors.Is(err, test.err) {
				t.Errorf("Texts(%s) = %#v, %v, want %#v, %v", test.value, got, err, test.want, test.err)
			}
		})
	}
	if got, err := Texts(nil); got != nil || err != nil {
		t.Errorf("Texts(nil) = %q, %v, want none", got, err)
	}
}
