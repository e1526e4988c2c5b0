// Verifies licences as docs/licences.md describes them, and shares no code with commerce/: what both say of the same bytes is compared under
// fuzzing. Reads one question as JSON from each line of standard input, and writes one word for each.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/note"
)

type question struct {
	Licence     []byte   `json:"licence"`
	Revocations []byte   `json:"revocations"`
	Licences    []string `json:"licenceKeys"`
	Lists       []string `json:"revocationKeys"`
	Now         string   `json:"now"`
	Sequence    uint64   `json:"sequence"`
	Latest      string   `json:"latest"`
	Account     string   `json:"account"`
	Sku         string   `json:"sku"`
	Version     string   `json:"version"`
}

type licence struct {
	ID           string                        `json:"id"`
	Sku          struct{ ID, Versions string } `json:"sku"`
	Buyer        struct{ Account string }      `json:"buyer"`
	NotBefore    string                        `json:"notBefore"`
	Expires      *string                       `json:"expires"`
	MaxStaleness *int64                        `json:"maxStalenessSeconds"`
	Grace        int64                         `json:"graceSeconds"`
	Critical     []string                      `json:"critical"`
}

type list struct {
	Sequence uint64   `json:"sequence"`
	IssuedAt string   `json:"issuedAt"`
	Expires  string   `json:"expires"`
	Salt     string   `json:"salt"`
	Revoked  []string `json:"revoked"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	out := bufio.NewWriter(os.Stdout)
	for in.Scan() {
		var q question
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(out, verify(q))
		out.Flush()
	}
}

// open checks a note of one kind by Go's own implementation of signed notes, and says what is wrong in a word.
func open(kind string, text []byte, keys, fields []string, into any) string {
	if !utf8.Valid(text) {
		return "malformed"
	}
	// One signature, and three lines of text.
	lines := strings.Split(string(text), "\n")
	if len(lines) != 5 || lines[0] != kind || lines[2] != "" || lines[4] != "" || !strings.HasPrefix(lines[3], "\u2014 ") {
		return "malformed"
	}
	// Go's implementation also takes base64 with stray bits at its end: there is one way to write a signature (RFC 4648, section 3.5), or there
	// would be a second text of the same licence.
	encoded := lines[3][strings.LastIndex(lines[3], " ")+1:]
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	// A key's id and an Ed25519 signature.
	const size = 4 + 64
	if err != nil || base64.StdEncoding.EncodeToString(decoded) != encoded || len(decoded) != size {
		return "malformed"
	}
	var verifiers []note.Verifier
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return "unknown-key"
		}
		verifiers = append(verifiers, verifier)
	}
	_, err = note.Open(text, note.VerifierList(verifiers...))
	switch err.(type) {
	case nil:
	case *note.UnverifiedNoteError:
		return "unknown-key"
	case *note.InvalidSignatureError:
		return "bad-signature"
	default:
		return "malformed"
	}
	decoder := json.NewDecoder(strings.NewReader(lines[1]))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil || json.Unmarshal([]byte(lines[1]), into) != nil {
		return "malformed"
	}
	object, _ := value.(map[string]any)
	for _, field := range fields {
		if _, ok := object[field]; !ok {
			return "malformed"
		}
	}
	if canonical(value) != lines[1] || saysNothing(value) {
		return "not-canonical"
	}
	return ""
}

// saysNothing finds what could as well be left out, so that there would be two ways to say it: null, and what is empty where it may be absent.
func saysNothing(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case map[string]any:
		for name, inner := range value {
			optional := map[string]bool{"critical": true, "domains": true, "extensions": true, "limits": true}[name]
			list, isList := inner.([]any)
			object, isObject := inner.(map[string]any)
			if saysNothing(inner) || optional && (isList && len(list) == 0 || isObject && len(object) == 0) {
				return true
			}
		}
	case []any:
		for _, inner := range value {
			if saysNothing(inner) {
				return true
			}
		}
	}
	return false
}

// canonical writes JSON as RFC 8785 says; numbers here are whole.
func canonical(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case bool:
		return fmt.Sprint(value)
	case json.Number:
		return value.String()
	case string:
		return quoted(value)
	case []any:
		parts := make([]string, len(value))
		for i, one := range value {
			parts[i] = canonical(one)
		}
		return "[" + strings.Join(parts, ",") + "]"
	case map[string]any:
		names := make([]string, 0, len(value))
		for name := range value {
			names = append(names, name)
		}
		sort.Slice(names, func(i, j int) bool {
			a, b := utf16.Encode([]rune(names[i])), utf16.Encode([]rune(names[j]))
			for k := range min(len(a), len(b)) {
				if a[k] != b[k] {
					return a[k] < b[k]
				}
			}
			return len(a) < len(b)
		})
		parts := make([]string, len(names))
		for i, name := range names {
			parts[i] = quoted(name) + ":" + canonical(value[name])
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	panic(fmt.Sprintf("%T", value))
}

func quoted(text string) string {
	var out bytes.Buffer
	out.WriteByte('"')
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	for _, r := range text {
		switch escape, ok := short[r]; {
		case ok:
			out.WriteString(escape)
		case r < 0x20:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}

// within says whether a version is in a range of comparisons that all have to hold, like ">=1.2, <2". Missing numbers of a bound are zeros.
func within(version, versions string) bool {
	for _, comparison := range strings.Split(versions, ",") {
		comparison = strings.TrimSpace(comparison)
		bound := strings.TrimLeft(comparison, "<>=")
		op := strings.TrimSuffix(comparison, bound)
		bound = "v" + strings.TrimSpace(bound)
		order := semver.Compare("v"+version, bound)
		holds := map[string]bool{">=": order >= 0, ">": order > 0, "<=": order <= 0, "<": order < 0, "=": order == 0}[op]
		if !holds {
			return false
		}
	}
	return true
}

func at(text string) time.Time {
	moment, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return moment
}

func verify(q question) string {
	var l licence
	fields := []string{"id", "order", "sku", "buyer", "entitlements", "issuedAt", "notBefore", "graceSeconds", "financeReceiptSha256", "revocations"}
	if bad := open("vitrine.dev/licence/v1", q.Licence, q.Licences, fields, &l); bad != "" {
		return bad
	}
	if len(l.Critical) > 0 {
		return "unknown-critical"
	}
	switch {
	case q.Account != "" && q.Account != l.Buyer.Account:
		return "wrong-account"
	case q.Sku != "" && q.Sku != l.Sku.ID:
		return "wrong-sku"
	case q.Version != "" && !within(q.Version, l.Sku.Versions):
		return "wrong-version"
	}
	now := at(q.Now)
	var revocations *list
	if len(q.Revocations) > 0 {
		revocations = &list{}
		fields := []string{"sequence", "issuedAt", "expires", "salt", "revoked"}
		if open("vitrine.dev/revocations/v1", q.Revocations, q.Lists, fields, revocations) != "" {
			return "revocations-bad"
		}
		for i := 1; i < len(revocations.Revoked); i++ {
			if revocations.Revoked[i-1] >= revocations.Revoked[i] {
				return "revocations-bad"
			}
		}
	}
	if now.Add(5 * time.Minute).Before(at(l.NotBefore)) {
		return "not-yet-valid"
	}
	var seen time.Time
	if q.Latest != "" {
		seen = at(q.Latest)
	}
	if revocations != nil && at(revocations.IssuedAt).After(seen) {
		seen = at(revocations.IssuedAt)
	}
	if now.Add(24 * time.Hour).Before(seen) {
		return "clock-turned-back"
	}
	if revocations != nil {
		if revocations.Sequence < q.Sequence {
			return "revocations-rolled-back"
		}
		entry := sha256.Sum256([]byte(revocations.Salt + "\n" + l.ID))
		for _, revoked := range revocations.Revoked {
			if revoked == hex.EncodeToString(entry[:]) {
				return "revoked"
			}
		}
	}
	if l.Expires != nil && !now.Before(at(*l.Expires)) {
		return "expired"
	}
	if l.MaxStaleness == nil {
		return "valid"
	}
	if revocations == nil {
		return "revocations-missing"
	}
	stale := at(revocations.IssuedAt).Add(time.Duration(*l.MaxStaleness) * time.Second)
	if expires := at(revocations.Expires); expires.Before(stale) {
		stale = expires
	}
	if now.After(stale.Add(time.Duration(l.Grace) * time.Second)) {
		return "revocations-stale"
	}
	return "valid"
}
