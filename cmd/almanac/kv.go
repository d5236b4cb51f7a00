package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
)

func newKVCommand(a *app) *cobra.Command {
	kv := &cobra.Command{Use: "kv", Short: "Read and write keys", Args: usageArgs(cobra.ArbitraryArgs), RunE: group}
	kv.AddCommand(newKVGetCommand(a), newKVPutCommand(a), newKVDelCommand(a))
	return kv
}

func newKVGetCommand(a *app) *cobra.Command {
	var prefix, keysOnly, valueOnly bool
	var rev uint64
	var limit int64
	cmd := &cobra.Command{
		Use:   "get K [END]",
		Short: "Read a key, the keys from K up to END, or those with a prefix",
		Args:  usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			span, single, err := spanOf(args, prefix)
			switch {
			case err != nil:
				return err
			case keysOnly && valueOnly:
				return usagef("--keys-only and --value-only exclude one another")
			case limit < 0:
				return usagef("--limit is not negative")
			}
			var read client.ReadOption
			if cmd.Flags().Changed("rev") {
				if rev == 0 {
					return usagef("--rev is above 0")
				}
				read = client.At(rev)
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				var kvs []client.KeyValue
				if single && !keysOnly {
					kv, err := c.KV.Get(cmd.Context(), []byte(args[0]), read)
					if err != nil {
						return err
					}
					if kv != nil {
						kvs = append(kvs, *kv)
					}
				} else {
					o := client.RangeOptions{Limit: limit, KeysOnly: keysOnly, Read: read}
					result, err := c.KV.Range(cmd.Context(), span, o)
					if err != nil {
						return err
					}
					kvs = result.KVs
				}
				return a.printKVs(kvs, keysOnly, valueOnly)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&prefix, "prefix", false, "all keys that start with K")
	flags.Uint64Var(&rev, "rev", 0, "read exactly at this revision")
	flags.Int64Var(&limit, "limit", 0, "the most keys to return; 0 means all")
	flags.BoolVar(&keysOnly, "keys-only", false, "leave the values out")
	flags.BoolVar(&valueOnly, "value-only", false, "print the values alone")
	return cmd
}

func (a *app) printKVs(kvs []client.KeyValue, keysOnly, valueOnly bool) error {
	if !a.json() && (keysOnly || valueOnly) {
		for _, kv := range kvs {
			line := kv.Key
			if valueOnly {
				line = kv.Value
			}
			if _, err := a.out.Write(append(line[:len(line):len(line)], '\n')); err != nil {
				return err
			}
		}
		return nil
	}
	records := make([]*record, len(kvs))
	for i, kv := range kvs {
		r := &record{}
		records[i] = r
		if valueOnly {
			r.bytes("value", kv.Value)
			continue
		}
		r.bytes("key", kv.Key)
		if !keysOnly {
			r.bytes("value", kv.Value)
		}
		r.revision("create_revision", kv.CreateRevision).revision("mod_revision", kv.ModRevision)
		r.num("version", kv.Version)
	}
	return a.list(records)
}

func newKVPutCommand(a *app) *cobra.Command {
	var ifAbsent bool
	var ifRev uint64
	cmd := &cobra.Command{
		Use:   "put K V",
		Short: "Write a key, on a condition if asked",
		Args:  usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			compare := cmd.Flags().Changed("if-rev")
			switch {
			case ifAbsent && compare:
				return usagef("--if-absent and --if-rev exclude one another")
			case args[0] == "":
				return usagef("the key is empty")
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				ctx, key, value := cmd.Context(), []byte(args[0]), []byte(args[1])
				var revision uint64
				var err error
				switch {
				case ifAbsent:
					revision, err = c.KV.PutIfAbsent(ctx, key, value)
				case compare:
					revision, err = c.KV.CompareAndPut(ctx, key, value, ifRev)
				default:
					revision, err = c.KV.Put(ctx, key, value)
				}
				if err != nil {
					return err
				}
				r := (&record{}).revision("revision", revision)
				return a.emit(a.out, r, "revision "+strconv.FormatUint(revision, 10))
			})
		},
	}
	cmd.Flags().BoolVar(&ifAbsent, "if-absent", false, "only if the key does not exist")
	cmd.Flags().Uint64Var(&ifRev, "if-rev", 0, "only if this is the revision of the key's last write; 0: no such key")
	return cmd
}

func newKVDelCommand(a *app) *cobra.Command {
	var prefix bool
	cmd := &cobra.Command{
		Use:   "del K [END]",
		Short: "Delete a key, the keys from K up to END, or those with a prefix",
		Args:  usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			span, _, err := spanOf(args, prefix)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				result, err := c.KV.Delete(cmd.Context(), span)
				if err != nil {
					return err
				}
				r := (&record{}).num("deleted", result.Deleted)
				return a.emit(a.out, r, "deleted "+strconv.FormatInt(result.Deleted, 10))
			})
		},
	}
	cmd.Flags().BoolVar(&prefix, "prefix", false, "all keys that start with K")
	return cmd
}

// spanOf returns the keys that K [END] and --prefix mean, and whether it is K alone.
func spanOf(args []string, prefix bool) (span client.Span, single bool, err error) {
	switch {
	case prefix && len(args) == 2:
		return span, false, usagef("END and --prefix exclude one another")
	case prefix:
		return client.Prefix([]byte(args[0])), false, nil
	case len(args) == 2 && args[1] == "":
		return client.From([]byte(args[0])), false, nil
	case len(args) == 2:
		return client.Between([]byte(args[0]), []byte(args[1])), false, nil
	case args[0] == "":
		return span, false, usagef("the key is empty")
	}
	return client.Key([]byte(args[0])), true, nil
}
