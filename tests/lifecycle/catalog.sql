-- What is in the extension, a line a property, whatever the order in which it was made.
WITH member AS (
    SELECT classid, objid FROM pg_catalog.pg_depend
     WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
       AND refobjid = (SELECT oid FROM pg_catalog.pg_extension WHERE extname = 'recsync')
), relation AS (
    SELECT c.* FROM member m JOIN pg_catalog.pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
)
SELECT 'member ' || pg_catalog.pg_describe_object(classid, objid, 0) AS line FROM member
UNION ALL
SELECT 'comment ' || pg_catalog.pg_describe_object(d.classoid, d.objoid, d.objsubid) || ': ' || d.description
  FROM member m JOIN pg_catalog.pg_description d ON d.classoid = m.classid AND d.objoid = m.objid
UNION ALL
SELECT pg_catalog.format('relation %s %s %s %s', c.relname, c.relkind, c.relpersistence, c.reloptions) FROM relation c
UNION ALL
SELECT pg_catalog.format('right on %s: %s', c.relname, a) FROM relation c, pg_catalog.unnest(c.relacl::text[]) AS a
UNION ALL
SELECT pg_catalog.format('column %s.%s %s %s default %s identity %s generated %s',
                         c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
                         pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated)
  FROM relation c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
UNION ALL
SELECT pg_catalog.format('constraint %s of %s: %s', n.conname, c.relname, pg_catalog.replace(pg_catalog.pg_get_constraintdef(n.oid), ' NOT VALID', ''))
  FROM relation c JOIN pg_catalog.pg_constraint n ON n.conrelid = c.oid
UNION ALL
SELECT 'index ' || pg_catalog.pg_get_indexdef(i.indexrelid) FROM relation c JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
UNION ALL
SELECT pg_catalog.format('trigger %s', pg_catalog.pg_get_triggerdef(t.oid)) FROM relation c JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
UNION ALL
SELECT pg_catalog.format('view %s: %s', c.relname, pg_catalog.pg_get_viewdef(c.oid)) FROM relation c WHERE c.relkind = 'v'
UNION ALL
SELECT pg_catalog.format('sequence %s: %s', c.relname, (s.seqtypid, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle))
  FROM relation c JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
UNION ALL
SELECT 'function ' || pg_catalog.pg_get_functiondef(p.oid)
  FROM member m JOIN pg_catalog.pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid AND p.prokind = 'f'
UNION ALL
SELECT pg_catalog.format('right on %s: %s', p.oid::regprocedure, a)
  FROM member m JOIN pg_catalog.pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid, pg_catalog.unnest(p.proacl::text[]) AS a
UNION ALL
SELECT pg_catalog.format('event trigger %s on %s calls %s, %s, %s', t.evtname, t.evtevent, t.evtfoid::regprocedure, t.evtenabled, t.evttags)
  FROM member m JOIN pg_catalog.pg_event_trigger t ON m.classid = 'pg_event_trigger'::regclass AND t.oid = m.objid
UNION ALL
SELECT pg_catalog.format('wrapper %s %s %s', f.fdwname, f.fdwvalidator::regprocedure, f.fdwacl)
  FROM member m JOIN pg_catalog.pg_foreign_data_wrapper f ON m.classid = 'pg_foreign_data_wrapper'::regclass AND f.oid = m.objid
UNION ALL
SELECT pg_catalog.format('dumped %s %s', o.oid::regclass, o.condition)
  FROM pg_catalog.pg_extension e, LATERAL ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition)) AS o (oid, condition)
 WHERE e.extname = 'recsync'
UNION ALL
SELECT 'row of presets ' || p::text FROM recsync.presets p
