(SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
          'name', a.attname, 'column', pg_catalog.quote_ident(a.attname),
          'stored', COALESCE({stored}, ''), 'shown', COALESCE({shown}, ''),
          'type', pg_catalog.format_type(a.atttypid, -1),
          'equals', pg_catalog.format('OPERATOR(%I.%s)', en.nspname, e.oprname),
          'after', pg_catalog.format('OPERATOR(%I.%s)', gn.nspname, g.oprname)) ORDER BY k.n)
   FROM pg_catalog.pg_index i
   CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(i.indkey::int2[]), pg_catalog.unnest(i.indclass::oid[]))
        WITH ORDINALITY AS k (attnum, opclass, n)
   JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
   JOIN pg_catalog.pg_opclass o ON o.oid = k.opclass
   JOIN pg_catalog.pg_amop ea ON ea.amopfamily = o.opcfamily AND ea.amopstrategy = 3
        AND ea.amoplefttype = o.opcintype AND ea.amoprighttype = o.opcintype
   JOIN pg_catalog.pg_operator e ON e.oid = ea.amopopr
   JOIN pg_catalog.pg_namespace en ON en.oid = e.oprnamespace
   JOIN pg_catalog.pg_amop ga ON ga.amopfamily = o.opcfamily AND ga.amopstrategy = 5
        AND ga.amoplefttype = o.opcintype AND ga.amoprighttype = o.opcintype
   JOIN pg_catalog.pg_operator g ON g.oid = ga.amopopr
   JOIN pg_catalog.pg_namespace gn ON gn.oid = g.oprnamespace
  WHERE i.indrelid = pg_catalog.to_regclass({relation}) AND {index} AND k.n <= i.indnkeyatts)